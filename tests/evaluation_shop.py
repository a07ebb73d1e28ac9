"""A small prepared shop for the evaluation's tests: shoppers with one favourite colour, queries
that leave it out.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl
from conftest import ROOT

from ospo.config import load_config
from ospo.data.dataset import PreparedData, load_prepared
from ospo.data.schemas import PREPARED
from ospo.files import write_json

COLOURS = ["red", "blue", "green", "black", "white", "pink", "grey", "brown"]
KINDS = ["dress", "jacket", "scarf", "boots", "jumper", "skirt"]
MATERIALS = ["cotton", "wool", "silk", "leather"]


def config(*overrides: str):
    """params.yaml with quick retrievers and resamples."""
    quick = ["retrievers.training=bm25", "retrievers.unseen=[static]", "evaluation.resamples=500"]
    return load_config(ROOT / "params.yaml", [*quick, *overrides])


def tables(requests: int = 120, seed: int = 0, pool: int = 40) -> dict[str, pl.DataFrame]:
    """The four prepared tables. Half of the requests' shoppers come twice; gains are graded."""
    rng = np.random.default_rng(seed)
    items = [(c, k, m) for c in COLOURS for k in KINDS for m in MATERIALS]
    catalogue = pl.DataFrame(
        [
            {
                "item_id": f"i{n:04d}",
                "title": f"{c} {k}",
                "text": f"{c} {k} made of {m}",
                "category": k,
                "group": "clothes",
                "brand": "",
                "colour": c,
                "description": "",
            }
            for n, (c, k, m) in enumerate(items)
        ],
        schema=PREPARED["catalogue"],
    )
    rows, qrels, pools = [], [], []
    for r in range(requests):
        customer = r // 2
        colour, kind = COLOURS[customer % len(COLOURS)], KINDS[r % len(KINDS)]
        split = ("train", "train", "validation", "test", "test")[customer % 5]
        exact = [n for n, item in enumerate(items) if item[:2] == (colour, kind)]
        partial = [n for n, item in enumerate(items) if item[1] == kind and item[0] != colour][
            : r % 3
        ]
        others = [n for n in range(len(items)) if n not in {*exact, *partial}]
        pool_items = [
            *exact,
            *partial,
            *rng.choice(others, size=pool - len(exact) - len(partial), replace=False),
        ]
        rng.shuffle(pool_items)
        name = f"r{r:05d}"
        history = [{"item_id": "x", "name": f"{colour} hat", "type": "hat", "colour": colour}] * (
            r % 4
        )
        rows.append(
            {
                "request_id": name,
                "split": split,
                "query": f"nice {kind}" if r % 2 else kind,
                "customer_id": f"c{customer:05d}",
                "history": history,
                "target_id": f"i{exact[0]:04d}",
            }
        )
        qrels += [(name, f"i{n:04d}", 1.0, "E") for n in sorted(exact)]
        qrels += [(name, f"i{n:04d}", 0.1, "S") for n in sorted(partial)]
        pools.append((name, [f"i{n:04d}" for n in pool_items]))
    return {
        "catalogue": catalogue,
        "requests": pl.DataFrame(rows, schema=PREPARED["requests"]),
        "qrels": pl.DataFrame(qrels, schema=PREPARED["qrels"], orient="row"),
        "pools": pl.DataFrame(pools, schema=PREPARED["pools"], orient="row"),
    }


def write_shop(directory: Path, **options: int) -> PreparedData:
    """Write the shop under ``directory/prepared/shop`` and load it the way evaluation does."""
    folder = directory / "prepared" / "shop"
    folder.mkdir(parents=True)
    for name, table in tables(**options).items():
        table.write_parquet(folder / f"{name}.parquet")
    write_json(
        folder / "stats.json", {"read": {"items": 192}, "kept": {"items": 192}, "dropped": {}}
    )
    return load_prepared(folder)


def write_answers(file: Path, data: PreparedData, answer) -> Path:
    """A file of answers, ``answer(request, target)`` for each request."""
    colour = dict(data.catalogue.select("item_id", "colour").iter_rows())
    lines = [
        json.dumps(
            {"request_id": request.request_id, "answer": answer(request, colour[request.target_id])}
        )
        for request in data.requests
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def oracle(request, colour: str) -> str:
    """What a perfect policy writes."""
    return f"{colour} {request.query.split()[-1]}, {request.query}"
