"""H&M's raw CSV files → articles, customers, and purchases as sorted integer codes."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl

from ospo.data.raw_csv import first_value, read_csv
from ospo.data.schemas import (
    HM_ARTICLES,
    HM_ARTICLES_NEEDED,
    HM_CUSTOMERS,
    HM_CUSTOMERS_NEEDED,
    HM_TRANSACTIONS_NEEDED,
)
from ospo.data.stats import Stats
from ospo.data.text import known, strip_html
from ospo.errors import InputError

_EPOCH = date(1990, 1, 1)
_DATE_AND_TIME = r"^\d{4}-\d{2}-\d{2}[T ]\d{1,2}:\d{2}"


def article_id(column: pl.Expr) -> pl.Expr:
    """Canonical article id, ten digits: "108775015", "0108775015" and "108775015.0" are one; null
    where it is no such number.
    """
    digits = column.str.strip_chars().str.strip_suffix(".0").str.strip_chars_start("0")
    number = column.str.contains(r"^\s*\d+(?:\.0)?\s*$") & (digits.str.len_chars() <= 10)
    return pl.when(number).then(digits.str.zfill(10))


def _is_decimal(column: pl.Expr) -> pl.Expr:
    return column.str.ends_with(".0").fill_null(False)


def read_articles(file: Path, stats: Stats) -> pl.DataFrame:
    """articles.csv with canonical ids, sorted by them; "" where a text is missing."""
    frame = read_csv(file, HM_ARTICLES_NEEDED, stats)
    stats.read["articles"] = len(frame)
    written = frame["article_id"]
    frame = frame.with_columns(article_id=article_id(pl.col("article_id")))
    decimal = frame.select(pl.col("article_id").is_not_null() & _is_decimal(pl.lit(written)))
    stats.read_in_form("article_id_as_decimal", int(decimal.to_series().sum()))
    frame = stats.keep(frame, "article_malformed_id", pl.col("article_id").is_not_null())
    if frame.is_empty():
        example = f", for example {written[0]!r:.60}" if len(written) else ""
        problem = f"no article with an id of at most ten digits{example}"
        raise InputError(file, "article_id", problem, "write ids as 0108775015")
    if frame["article_id"].n_unique() < len(frame):
        twice = frame.filter(pl.col("article_id").is_duplicated())["article_id"].sort()[0]
        raise InputError(
            file, "article_id", f"product {twice!r} appears twice", "keep one row for each article"
        )
    texts = [strip_html(known(pl.col(name))).alias(name) for name in HM_ARTICLES_NEEDED[1:]]
    return frame.with_columns(texts).sort("article_id")


def read_customers(file: Path, stats: Stats) -> pl.Series:
    """Customer ids, sorted; a customer's code is the position here."""
    frame = read_csv(file, HM_CUSTOMERS_NEEDED, stats)
    stats.read["customers"] = len(frame)
    frame = stats.keep(frame, "customer_without_id", pl.col("customer_id").fill_null("") != "")
    if frame.is_empty():
        raise InputError(file, "customer_id", "no customer", "use the official customers.csv")
    unique = frame.unique().sort("customer_id")
    stats.drop("customer_duplicate", len(frame) - len(unique))
    return unique["customer_id"]


@dataclass(frozen=True)
class Purchases:
    """Purchases sorted by (customer, day, article), an article only at its first purchase by a
    customer.

    customer, day, item: (n,) codes: position in the customers, days since 1990, catalogue row.
    day_start: (n,) first position of the same customer and day; customer_start: (n,) first of the
    same customer.
    """

    customer: np.ndarray
    day: np.ndarray
    item: np.ndarray
    day_start: np.ndarray
    customer_start: np.ndarray


def _first_positions(keys: np.ndarray) -> np.ndarray:
    """Position of the first element of each run of equal, sorted keys."""
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    return np.repeat(starts, np.diff(np.append(starts, len(keys))))


def read_purchases(
    file: Path, articles: pl.DataFrame, customers: pl.Series, stats: Stats
) -> Purchases:
    """Transactions as sorted integer codes, unusable rows counted and left out."""
    # Sixteen bits of the sort key hold the days until 2169.
    today = min((datetime.now(UTC).date() - _EPOCH).days, 2**16 - 1)
    frame = _read_transactions(file, articles, customers, stats)
    stats.read["transactions"] = len(frame)
    if frame.is_empty():
        raise InputError(file, "t_dat", "no transaction", "use the official transactions_train.csv")
    usual = pl.col("day").is_not_null()
    stats.read_in_form(
        "transaction_date_with_time", int(frame.select(usual & pl.col("timed")).sum().item())
    )
    decimal = ~pl.col("malformed") & pl.col("decimal")
    stats.read_in_form("transaction_article_id_as_decimal", int(frame.select(decimal).sum().item()))
    frame = stats.keep(frame, "transaction_bad_date", (pl.col("day") >= 0).fill_null(False))
    frame = stats.keep(frame, "transaction_future_date", pl.col("day") <= today)
    if frame.is_empty():
        problem = f"no date reads YYYY-MM-DD, up to today{_example(file, 't_dat')}"
        raise InputError(file, "t_dat", problem, "write dates as 2020-09-22")
    frame = stats.keep(frame, "transaction_negative_price", ~pl.col("refund"))
    for reason, condition, column, problem, fix in _TRANSACTION_CHECKS:
        some = not frame.is_empty()
        frame = stats.keep(frame, reason, condition)
        if some and frame.is_empty():
            raise InputError(file, column, f"{problem}{_example(file, column)}", fix)
    if frame.is_empty():
        raise InputError(file, "price", "every price is negative", "supply purchases, not refunds")
    return _sort_purchases(frame, stats)


_TRANSACTION_CHECKS = (
    (
        "transaction_malformed_article_id",
        ~pl.col("malformed"),
        "article_id",
        "no id is a number of at most ten digits",
        "write ids as 0108775015",
    ),
    (
        "transaction_unknown_article",
        pl.col("item").is_not_null(),
        "article_id",
        f"no transaction names an article of {HM_ARTICLES}",
        f"use the {HM_ARTICLES} of the same export",
    ),
    (
        "transaction_unknown_customer",
        pl.col("customer").is_not_null(),
        "customer_id",
        f"no transaction names a customer of {HM_CUSTOMERS}",
        f"use the {HM_CUSTOMERS} of the same export",
    ),
)
"""Reason in stats.json, rows that stay; and where none stays: column, problem and fix."""


def _example(file: Path, column: str) -> str:
    """The first value of a column of ``file``, as part of an error line."""
    return f", for example {first_value(file, column)!r:.60}"


def _read_transactions(
    file: Path, articles: pl.DataFrame, customers: pl.Series, stats: Stats
) -> pl.DataFrame:
    """Transactions as codes: day (since 1990), item and customer are null where unknown; refund,
    malformed (article id), decimal (article id) and timed (date) are true or false.
    """
    items = articles.lazy().select("article_id", item=pl.int_range(pl.len(), dtype=pl.Int32))
    people = (
        customers.to_frame("customer_id")
        .lazy()
        .with_columns(customer=pl.int_range(pl.len(), dtype=pl.Int32))
    )

    def coded(frame: pl.LazyFrame) -> pl.LazyFrame:
        date, article = pl.col("t_dat"), pl.col("article_id")
        return (
            frame.select(
                day=date.map_batches(_days, return_dtype=pl.Int32, is_elementwise=True),
                timed=(date.str.len_bytes() > 10).fill_null(False),
                customer_id="customer_id",
                article_id=article_id(article),
                decimal=_is_decimal(article),
                refund=pl.col("price").str.starts_with("-").fill_null(False),
            )
            .join(items, on="article_id", how="left")
            .join(people, on="customer_id", how="left")
            .with_columns(malformed=pl.col("article_id").is_null())
            .drop("article_id", "customer_id")
        )

    return read_csv(file, HM_TRANSACTIONS_NEEDED, stats, optional=["price"], transform=coded)


def _days(dates: pl.Series) -> pl.Series:
    """Days since 1990 of dates YYYY-MM-DD, also where a time of day follows; null for the rest."""
    found = dates.str.to_date("%Y-%m-%d", strict=False)
    if found.null_count() > dates.null_count():
        timed = dates.str.contains(_DATE_AND_TIME)
        found = found.zip_with(~timed, dates.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False))
    return (found - _EPOCH).dt.total_days().cast(pl.Int32)


def _sort_purchases(frame: pl.DataFrame, stats: Stats) -> Purchases:
    # Packed keys: 24 bits each for customer and item, 16 for the day, so that one integer sort
    # orders them all.
    customer, item, day = (
        frame[name].to_numpy().astype(np.uint64) for name in ("customer", "item", "day")
    )
    keys = np.sort(customer << np.uint64(40) | item << np.uint64(16) | day)
    pair = keys >> np.uint64(16)
    first = np.concatenate(([True], pair[1:] != pair[:-1]))
    stats.drop("transaction_repeated_article", len(keys) - int(first.sum()))
    keys = keys[first]
    low = np.uint64(0xFFFFFF)
    keys = (
        keys >> np.uint64(40) << np.uint64(40)
        | (keys & np.uint64(0xFFFF)) << np.uint64(24)
        | (keys >> np.uint64(16)) & low
    )
    keys.sort()
    return Purchases(
        customer=(keys >> np.uint64(40)).astype(np.int32),
        day=(keys >> np.uint64(24) & np.uint64(0xFFFF)).astype(np.int32),
        item=(keys & low).astype(np.int32),
        day_start=_first_positions(keys >> np.uint64(24)),
        customer_start=_first_positions(keys >> np.uint64(40)),
    )
