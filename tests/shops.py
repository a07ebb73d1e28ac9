"""Made-up shops in the formats that search teams have, written by the tests."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

KINDS = ("lamp", "chair", "kettle", "rug", "shelf", "clock")
COLOURS = ("red", "green", "blue", "white", "black")
MATERIALS = ("oak", "steel", "glass", "wool")


def products(count: int = 60, category: bool = True) -> list[dict[str, Any]]:
    """Products of six kinds, each with colour, material and brand; ids are text with leading zeros,
    slashes and capitals.
    """
    made = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        colour = COLOURS[(number // 2) % len(COLOURS)]
        material = MATERIALS[(number // 3) % len(MATERIALS)]
        made.append(
            {
                "_id": f"00{number}/{kind.upper()}",
                "title": f"{material} {colour} {kind}",
                "text": f"A {colour} {kind} of {material}, number {number}",
                "brand": f"Maker {number % 4}",
                "color": colour,
                "material": material,
                "price": 10 + number,
                **(
                    {"category": kind, "group": "home" if number % 2 else "kitchen"}
                    if category
                    else {}
                ),
            }
        )
    return made


def lines(file: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def queries() -> dict[str, tuple[str, str]]:
    """Query id → (kind, words): one for each kind and colour, in words that differ."""
    return {
        f"q{number:02d}": (kind, f"{colour} {kind} for my room {number}")
        for number, (kind, colour) in enumerate((k, c) for k in KINDS for c in COLOURS)
    }


def judgements() -> list[tuple[str, str, int]]:
    """(query id, product id, grade): 2 for kind and colour, 1 for the kind in oak, 0 for another
    kind; the rest of the kind is not judged.
    """
    found = []
    for name, (kind, words) in queries().items():
        for item in products():
            if kind in item["title"] and (item["color"] in words or item["material"] == "oak"):
                found.append((name, item["_id"], 2 if item["color"] in words else 1))
        found.append((name, next(i["_id"] for i in products() if kind not in i["title"]), 0))
    return found


def side(name: str) -> str:
    """The split of a query: of ten, six train, two dev, two test."""
    place = int(name[1:]) % 10
    return "train" if place < 6 else "dev" if place < 8 else "test"


def write_beir(folder: Path, category: bool = True) -> Path:
    """A BEIR folder of 60 products and 30 queries."""
    lines(folder / "corpus.jsonl", products(category=category))
    lines(
        folder / "queries.jsonl",
        [{"_id": name, "text": words} for name, (_, words) in queries().items()],
    )
    (folder / "qrels").mkdir(exist_ok=True)
    for split in ("train", "dev", "test"):
        rows = [f"{q}\t{d}\t{g}\n" for q, d, g in judgements() if side(q) == split]
        (folder / "qrels" / f"{split}.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + "".join(rows), encoding="utf-8"
        )
    return folder


def write_trec(folder: Path) -> Path:
    """The same shop as TREC has it: documents as tsv."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["_id", "title", "text", "brand", "color", "material", "category", "group"]
    rows = ["\t".join(str(item[name]) for name in names) for item in products()]
    (folder / "documents.tsv").write_text("\n".join(["\t".join(names), *rows]) + "\n")
    (folder / "topics.tsv").write_text(
        "".join(f"{name}\t{words}\n" for name, (_, words) in queries().items())
    )
    (folder / "qrels.txt").write_text("".join(f"{q} 0 {d} {g}\n" for q, d, g in judgements()))
    return folder


def shopping(seed: int = 0, searches: int = 300) -> list[dict[str, Any]]:
    """A log's events: ten products shown per search; what fits is clicked, put into the cart and
    bought more often, and so is what stands high.
    """
    draw, events = random.Random(seed), []
    asked = list(queries().items())
    for number in range(searches):
        _, (kind, words) = asked[number % len(asked)]
        fits = [item for item in products() if kind in item["title"]]
        shown = draw.sample(fits, 5) + draw.sample(products(), 5)
        shown = list({item["_id"]: item for item in shown}.values())
        draw.shuffle(shown)
        for position, item in enumerate(shown, 1):
            event = {
                "search": f"s{number}", "query": words, "item": item["_id"],
                "position": position, "time": number * 100 + position * 4,
            }  # fmt: skip
            events.append(event | {"action": "impression"})
            wanted = (item["color"] in words) + (kind in item["title"])
            for step, action in enumerate(("click", "add_to_cart", "purchase"), 1):
                if draw.random() > wanted * 0.45 / (1 + position / 10):
                    break
                events.append(event | {"action": action, "time": event["time"] + step})
    return events


def write_ubi(folder: Path, bulk: bool = True) -> Path:
    """The shop's log as User Behavior Insights has it, with the lines of a bulk export."""
    lines(folder / "corpus.jsonl", products())
    records: list[dict[str, Any]] = []
    for event in shopping():
        if not any(r.get("query_id") == event["search"] for r in records[-100:]):
            records += [{"index": {"_index": "ubi_queries"}}] if bulk else []
            records.append({"query_id": event["search"], "user_query": event["query"]})
        records += [{"index": {"_index": "ubi_events"}}] if bulk else []
        records.append(
            {
                "action_name": event["action"],
                "query_id": event["search"],
                "timestamp": event["time"],
                "event_attributes": {
                    "object": {"object_id": event["item"]},
                    "position": {"ordinal": event["position"]},
                },
            }
        )
    lines(folder / "log.ndjson", records)
    return folder


def write_clicks(folder: Path, parquet: bool = False) -> Path:
    """The shop's log as a plain table."""
    import polars as pl

    lines(folder / "corpus.jsonl", products())
    columns = ("query", "item", "position", "action", "time", "search")
    log = pl.DataFrame([{name: e[name] for name in columns} for e in shopping()])
    log = log.rename({"search": "session"})
    if parquet:
        log.write_parquet(folder / "clicks.parquet")
    else:
        log.write_csv(folder / "clicks.csv")
    return folder
