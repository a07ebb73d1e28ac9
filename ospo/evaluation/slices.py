"""Properties of requests by which figures are broken down. A slice must be known before any policy
answers.
"""

import re
from collections import Counter

import numpy as np
import polars as pl

from ospo.data.dataset import PreparedData

SLICES = {
    "words": "Words in the query",
    "popularity": "Popularity of what is sought",
    "relevant": "Relevant products of the highest grade",
    "grades": "Grades among the judgements",
    "category": "Category of what is sought",
    "history": "Purchases the policy can see",
}
OTHERS = "(all others)"
_CATEGORIES = 8  # largest ones shown; the rest together


def in_order(values: set[str]) -> list[str]:
    """Values of a slice as they are read: bands by their lower end, names by the alphabet, the rest
    last.
    """
    leading = {value: re.match(r"\d+", value) for value in values}
    return sorted(
        values, key=lambda v: (v == OTHERS, int(m.group()) if (m := leading[v]) else -1, v)
    )


def _band(value: int, bounds: tuple[int, ...], low: int = 0) -> str:
    """The band of ``value`` among low..b1, b1+1..b2, …, as text."""
    for high in bounds:
        if value <= high:
            return f"{low}" if low == high else f"{low}–{high}"
        low = high + 1
    return f"{low} or more"


def slice_table(data: PreparedData, rows: np.ndarray) -> pl.DataFrame:
    """One row per request in ``rows``: request_id, group (the shopper, or the request itself) and
    every slice as text.

    popularity: the target's category is *head* where the most frequent categories of training
    targets that together make up half of them hold it, *tail* otherwise. grades: the gains above 0
    that the request's judgements hold.
    """
    item_row = {item: row for row, item in enumerate(data.item_ids)}
    categories = data.catalogue["category"].to_list()
    sought = [categories[item_row[request.target_id]] or "unknown" for request in data.requests]
    head = _head(Counter(sought[row] for row in data.rows("train")))
    common = {name for name, _ in Counter(sought[row] for row in rows).most_common(_CATEGORIES)}
    grades = _grades(data)
    records = []
    for row in rows:
        request = data.requests[row]
        gains = data.gains_RP[row]
        records.append(
            {
                "request_id": request.request_id,
                "group": request.customer_id or request.request_id,
                "words": _band(len(request.query.split()), (1, 2, 3, 5), 1),
                "popularity": "head" if sought[row] in head else "tail",
                "relevant": _band(int((gains == gains.max()).sum()), (1, 3, 9), 1),
                "grades": grades[row],
                "category": sought[row] if sought[row] in common else OTHERS,
                "history": _band(len(request.history), (0, 2, 4)),
            }
        )
    return pl.DataFrame(records, schema=dict.fromkeys(["request_id", "group", *SLICES], pl.String))


def _head(counts: Counter[str]) -> set[str]:
    half, covered, head = counts.total() / 2, 0, set()
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= half:
            break
        head.add(name)
        covered += count
    return head


def _grades(data: PreparedData) -> list[str]:
    """Labels with gain > 0 of every request, highest gain first: ``E+S``, ``E``, … (H&M:
    ``purchase``).
    """
    file = data.directory / "qrels.parquet"
    qrels = (
        pl.read_parquet(file, glob=False).filter(pl.col("gain") > 0).unique(["request_id", "label"])
    )
    joined = (
        qrels.sort("request_id", "gain", "label", descending=[False, True, False])
        .group_by("request_id", maintain_order=True)
        .agg(pl.col("label").str.join("+"))
    )
    by_id = dict(joined.iter_rows())
    return [by_id.get(request.request_id, "") for request in data.requests]
