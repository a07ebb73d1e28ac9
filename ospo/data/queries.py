"""H&M requests' queries: seeded templates that leave the target's attributes out, or queries the
user supplies.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from ospo.data.stats import Stats
from ospo.data.text import clean_space
from ospo.errors import InputError

QUERY_LIMIT = 400
"""Longest query, in characters."""
_LINE_LIMIT = 1 << 16
"""Longest line of the file, in bytes; a query takes 5,000 at most, however it is escaped."""
_FIX = 'write one JSON object per line: {"customer_id": "...", "article_id": "...", "query": "..."}'


def template_queries(articles: pl.DataFrame, item_R: np.ndarray, hashes_R: np.ndarray) -> pl.Series:
    """(R,) queries for the articles in rows ``item_R``: type and department, never name, colour or
    pattern.

    hashes_R: (R,) uint64, choose the template.
    """
    kind = pl.col("product_type_name").str.to_lowercase()
    kind = (
        pl.when(kind.is_in(["unknown", ""]))
        .then(pl.col("product_group_name").str.to_lowercase())
        .otherwise(kind)
    )
    whom = pl.col("index_group_name").str.to_lowercase()
    templates = [
        kind,
        pl.format("{} {}", whom, kind),
        pl.format("{} for {}", kind, whom),
        pl.format("looking for {} {}", whom, kind),
        pl.format("new {}, {}", kind, whom),
        pl.format("{} in {}", kind, whom),
    ]
    written = pl.concat(
        [articles.select(query=clean_space(template)).to_series() for template in templates]
    )
    choice = (hashes_R % np.uint64(len(templates))).astype(np.int64)
    return written[choice * len(articles) + item_R]


def with_supplied_queries(
    requests: pl.DataFrame, supplied: pl.DataFrame, stats: Stats
) -> pl.DataFrame:
    """Put the supplied queries in place of the templates'. Lines that name no request are
    counted.
    """
    joined = requests.join(
        supplied, on=["customer_id", "target_id"], how="left", maintain_order="left"
    )
    used = len(joined) - joined["supplied"].null_count()
    stats.used["queries_supplied"] = used
    stats.drop("query_line_without_request", len(supplied) - used)
    return joined.with_columns(query=pl.coalesce("supplied", "query")).drop("supplied")


def read_queries(file: Path, article_id: Callable[[pl.Expr], pl.Expr]) -> pl.DataFrame:
    """Supplied queries: customer_id, target_id (canonical, by ``article_id``), supplied.

    Raises InputError with the line number for a line that is not such an object, an empty query,
    one of more than 400 characters, or two queries for one purchase.
    """
    supplied = _read_lines(file).with_columns(target_id=article_id(pl.col("target_id")))
    if supplied["target_id"].null_count():
        raise InputError(file, "article_id", "is not a number of at most ten digits", _FIX)
    if supplied.select("customer_id", "target_id").is_duplicated().any():
        raise InputError(
            file, "article_id", "two queries for one purchase", "keep one line for each purchase"
        )
    return supplied


def _read_lines(file: Path) -> pl.DataFrame:
    rows: list[tuple[str, str, str]] = []
    try:
        with file.open("rb") as stream:
            # Not by any other line separator: those of Unicode may stand inside a JSON string.
            for number in itertools.count(1):
                line = stream.readline(_LINE_LIMIT + 1)
                if not line:
                    break
                if row := _read_line(file, number, line):
                    rows.append(row)
    except OSError as error:
        raise InputError(
            file, "", f"cannot be read ({error})", "set data.hm.queries_file to a UTF-8 file"
        ) from None
    return pl.DataFrame(
        rows,
        schema=dict.fromkeys(("customer_id", "target_id", "supplied"), pl.String),
        orient="row",
    )


def _read_line(file: Path, number: int, line: bytes) -> tuple[str, str, str] | None:
    """Customer, article and query of a line; None for a blank line. Raises InputError."""
    where = f"line {number}"
    if len(line) > _LINE_LIMIT:
        raise InputError(file, where, f"is longer than {_LINE_LIMIT:,} bytes", _FIX)
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        fix = "set data.hm.queries_file to a UTF-8 file"
        raise InputError(file, where, f"cannot be read ({error})", fix) from None
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(file, where, "is not JSON", _FIX) from None
    names = ("customer_id", "article_id", "query")
    if not isinstance(value, dict) or any(not isinstance(value.get(name), str) for name in names):
        raise InputError(file, where, f"lacks a text under one of {', '.join(names)}", _FIX)
    if not all(_is_unicode(value[name]) for name in names):
        raise InputError(
            file, where, "holds half of a surrogate pair", "write the character itself"
        )
    query = " ".join(value["query"].split())
    if not 0 < len(query) <= QUERY_LIMIT:
        problem = f"query of {len(query)} characters"
        raise InputError(file, where, problem, f"write 1 to {QUERY_LIMIT}")
    return value["customer_id"], value["article_id"], query


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
