"""H&M requests' queries: seeded templates that leave the target's attributes out, or queries the
user supplies.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from ospo.data.stats import Stats
from ospo.data.text import clean_space
from ospo.errors import InputError

QUERY_LIMIT = 400
_FIX = 'write one JSON object a line: {"customer_id": "...", "article_id": "...", "query": "..."}'


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
        # Not splitlines(): a line separator of Unicode may stand inside a JSON string.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            file, "", f"cannot be read ({error})", "set data.hm.queries_file to a UTF-8 file"
        ) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise InputError(file, f"line {number}", "is not JSON", _FIX) from None
        names = ("customer_id", "article_id", "query")
        if not isinstance(value, dict) or any(
            not isinstance(value.get(name), str) for name in names
        ):
            raise InputError(
                file, f"line {number}", f"lacks a text under one of {', '.join(names)}", _FIX
            )
        query = " ".join(value["query"].split())
        if not 0 < len(query) <= QUERY_LIMIT:
            raise InputError(
                file,
                f"line {number}",
                f"query of {len(query)} characters",
                f"write 1 to {QUERY_LIMIT}",
            )
        rows.append((value["customer_id"], value["article_id"], query))
    return pl.DataFrame(
        rows,
        schema=dict.fromkeys(("customer_id", "target_id", "supplied"), pl.String),
        orient="row",
    )
