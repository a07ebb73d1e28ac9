"""H&M Personalized Fashion Recommendations: raw CSV files → prepared tables.

A request is one purchase (the target), the shopper's purchases of earlier days (the history) and a
query that leaves attributes out. Customers are split by seeded hash, and time is cut: targets of
test and validation customers lie in the last days, targets of training customers before them, so
nothing after the cut is seen in training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl

from ospo.config import NO_QUERIES, Config, HmData
from ospo.data.hashing import assign_split, hash_strings, mix
from ospo.data.pools import Judged, item_ranges, pool_chunks
from ospo.data.queries import read_queries, template_queries, with_supplied_queries
from ospo.data.schemas import (
    HISTORY,
    HM_ARTICLES,
    HM_ARTICLES_NEEDED,
    HM_CUSTOMERS,
    HM_CUSTOMERS_NEEDED,
    HM_TRANSACTIONS,
    HM_TRANSACTIONS_NEEDED,
    collect,
    raw_folder,
    scan_csv,
)
from ospo.data.stats import Stats
from ospo.data.text import join_parts, known, strip_html, text_codes
from ospo.data.writer import Prepared
from ospo.errors import InputError

_EPOCH = date(1990, 1, 1)
_CHUNK = 1 << 16
_MIN_HELD_OUT = 20
"""The holdout window doubles until validation and test hold this many requests each."""


def article_id(column: pl.Expr) -> pl.Expr:
    """Canonical article id, ten digits: "108775015" and "0108775015" are one; null where it is no
    such number.
    """
    digits = column.str.strip_chars().str.strip_chars_start("0")
    return pl.when(column.str.contains(r"^\s*\d+\s*$") & (digits.str.len_chars() <= 10)).then(
        digits.str.zfill(10)
    )


def prepare_hm(raw: Path, config: Config, stats: Stats) -> Prepared:
    """Read the raw files in ``raw`` and build the prepared tables. Raises InputError."""
    raw = raw_folder(raw, "data.hm.raw", [HM_ARTICLES, HM_TRANSACTIONS, HM_CUSTOMERS])
    options = config.data.hm
    articles = _read_articles(raw / HM_ARTICLES, stats)
    customers = _read_customers(raw / HM_CUSTOMERS, stats)
    purchases = _read_purchases(raw / HM_TRANSACTIONS, articles, customers, stats)
    shares = config.data.split
    splits = assign_split(customers, shares.validation, shares.test, config.seed).to_numpy()
    targets = _choose_targets(purchases, splits, options, stats)
    if not len(targets):
        fix = "supply more transactions or loosen data.hm (min_history, holdout_days)"
        raise InputError(raw / HM_TRANSACTIONS, "t_dat", "no purchase has an earlier history", fix)
    return _assemble(purchases, targets, articles, customers, splits, config, stats)


def _read_articles(file: Path, stats: Stats) -> pl.DataFrame:
    """articles.csv with canonical ids, sorted by them; "" where a text is missing."""
    frame = collect(file, scan_csv(file, HM_ARTICLES_NEEDED))
    stats.read["articles"] = len(frame)
    frame = frame.with_columns(article_id=article_id(pl.col("article_id")))
    frame = stats.keep(frame, "article_malformed_id", pl.col("article_id").is_not_null())
    if frame.is_empty():
        raise InputError(
            file, "article_id", "no article with a usable id", "use the official articles.csv"
        )
    if frame["article_id"].n_unique() < len(frame):
        twice = frame.filter(pl.col("article_id").is_duplicated())["article_id"].sort()[0]
        raise InputError(
            file, "article_id", f"product {twice!r} appears twice", "keep one row for each article"
        )
    texts = [strip_html(known(pl.col(name))).alias(name) for name in HM_ARTICLES_NEEDED[1:]]
    return frame.with_columns(texts).sort("article_id")


def _read_customers(file: Path, stats: Stats) -> pl.Series:
    """Customer ids, sorted; a customer's code is the position here."""
    frame = collect(file, scan_csv(file, HM_CUSTOMERS_NEEDED))
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


def _read_purchases(
    file: Path, articles: pl.DataFrame, customers: pl.Series, stats: Stats
) -> Purchases:
    """Transactions as sorted integer codes, unusable rows counted and left out."""
    today = min(
        (datetime.now(UTC).date() - _EPOCH).days, 2**16 - 1
    )  # sixteen bits of the sort key, until 2169
    items = articles.lazy().select("article_id", item=pl.int_range(pl.len(), dtype=pl.Int32))
    people = (
        customers.to_frame("customer_id")
        .lazy()
        .with_columns(customer=pl.int_range(pl.len(), dtype=pl.Int32))
    )
    frame = collect(
        file,
        scan_csv(file, HM_TRANSACTIONS_NEEDED, optional=["price"])
        .select(
            day=(
                pl.col("t_dat").str.to_date("%Y-%m-%d", strict=False) - pl.lit(_EPOCH)
            ).dt.total_days(),
            customer_id="customer_id",
            article_id=article_id(pl.col("article_id")),
            refund=pl.col("price").str.starts_with("-").fill_null(False),
        )
        .with_columns(pl.col("day").cast(pl.Int32))
        .join(items, on="article_id", how="left")
        .join(people, on="customer_id", how="left")
        .select("day", "item", "customer", "refund", malformed=pl.col("article_id").is_null()),
    )
    stats.read["transactions"] = len(frame)
    if frame.is_empty():
        raise InputError(file, "t_dat", "no transaction", "use the official transactions_train.csv")
    frame = stats.keep(frame, "transaction_bad_date", (pl.col("day") >= 0).fill_null(False))
    frame = stats.keep(frame, "transaction_future_date", pl.col("day") <= today)
    if frame.is_empty():
        raise InputError(
            file, "t_dat", "no date reads YYYY-MM-DD, up to today", "write dates as 2020-09-22"
        )
    frame = stats.keep(frame, "transaction_negative_price", ~pl.col("refund"))
    frame = stats.keep(frame, "transaction_malformed_article_id", ~pl.col("malformed"))
    frame = stats.keep(frame, "transaction_unknown_article", pl.col("item").is_not_null())
    frame = stats.keep(frame, "transaction_unknown_customer", pl.col("customer").is_not_null())
    if frame.is_empty():
        fix = "use articles.csv and customers.csv of the same export"
        raise InputError(
            file, "article_id", "no transaction names a known article and customer", fix
        )
    return _sort_purchases(frame, stats)


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


def _choose_targets(
    purchases: Purchases, splits: np.ndarray, options: HmData, stats: Stats
) -> np.ndarray:
    """Positions of the target purchases, ascending: each customer's latest eligible ones.

    Where the holdout window leaves validation or test fewer than 20 requests, it doubles, up to
    half the time the transactions cover; stats.json tells the days used.
    """
    history = purchases.day_start - purchases.customer_start
    eligible = history >= options.min_history
    stats.drop("target_without_history", int((~eligible).sum()))
    held_out = splits[purchases.customer] != "train"
    last, first = int(purchases.day.max()), int(purchases.day.min())
    window = options.holdout_days
    while True:
        late = purchases.day > last - window
        chosen = _latest(purchases, eligible & (late == held_out), options.requests_per_customer)
        counts = [
            int((splits[purchases.customer[chosen]] == name).sum())
            for name in ("validation", "test")
        ]
        if min(counts) >= _MIN_HELD_OUT or window * 2 > (last - first + 1) // 2:
            break
        window *= 2
    stats.used |= {"holdout_days": window, "holdout_days_asked": options.holdout_days}
    stats.drop("target_on_wrong_side_of_cut", int((eligible & (late != held_out)).sum()))
    stats.drop(
        "target_beyond_requests_per_customer",
        int((eligible & (late == held_out)).sum()) - len(chosen),
    )
    return chosen


def _latest(purchases: Purchases, eligible: np.ndarray, count: int) -> np.ndarray:
    """Positions of each customer's last ``count`` eligible purchases."""
    positions = np.flatnonzero(eligible)
    if not len(positions):
        return positions
    customer = purchases.customer[positions]
    ends = np.append(np.flatnonzero(customer[1:] != customer[:-1]), len(customer) - 1)
    from_end = np.repeat(ends, np.diff(np.append(-1, ends))) - np.arange(len(customer))
    return positions[from_end < count]


def _history_lists(
    purchases: Purchases, targets: np.ndarray, articles: pl.DataFrame, length: int
) -> pl.Series:
    """(R,) lists of the last ``length`` purchases of earlier days, oldest first."""
    end = purchases.day_start[targets]
    count = np.minimum(end - purchases.customer_start[targets], length)
    row = np.repeat(np.arange(len(targets)), count)
    within = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    items = purchases.item[np.repeat(end - count, count) + within]
    shown = articles.select(
        item_id="article_id", name="prod_name", type="product_type_name", colour="colour_group_name"
    )
    long = pl.DataFrame({"row": row}).with_columns(history=shown[items].to_struct())
    lists = long.group_by("row", maintain_order=True).agg("history")
    every = pl.DataFrame({"row": np.arange(len(targets))}).join(
        lists, on="row", how="left", maintain_order="left"
    )
    return every["history"].fill_null([]).cast(HISTORY)


def _assemble(
    purchases: Purchases,
    targets: np.ndarray,
    articles: pl.DataFrame,
    customers: pl.Series,
    splits: np.ndarray,
    config: Config,
    stats: Stats,
) -> Prepared:
    options = config.data.hm
    hashes_I = hash_strings(articles["article_id"], config.seed)
    hashes_U = hash_strings(customers, config.seed)
    hashes_R = mix(hashes_U[purchases.customer[targets]] ^ mix(hashes_I[purchases.item[targets]]))
    if options.max_requests and len(targets) > options.max_requests:
        stats.drop("request_beyond_max_requests", len(targets) - options.max_requests)
        chosen = np.sort(np.argsort(hashes_R, kind="stable")[: options.max_requests])
        targets, hashes_R = targets[chosen], hashes_R[chosen]
    # Targets are in (customer, day) order; request ids sort by (customer, article).
    order = np.lexsort((purchases.item[targets], purchases.customer[targets]))
    targets, hashes_R = targets[order], hashes_R[order]
    item, customer = purchases.item[targets], purchases.customer[targets]
    ids = pl.DataFrame(
        {"customer_id": customers[customer], "target_id": articles["article_id"][item]}
    )
    request_ids = ids.select(
        pl.concat_str("customer_id", "target_id", separator="-").alias("request_id")
    ).to_series()
    ids = ids.with_columns(
        request_ids,
        split=pl.Series(splits[customer]),
        query=template_queries(articles, item, mix(hashes_R)),
    )
    if options.queries_file != NO_QUERIES:
        file = Path(options.queries_file)
        ids = with_supplied_queries(ids, read_queries(file, article_id), stats)

    def request_chunks() -> Iterator[pl.DataFrame]:
        for begin in range(0, len(targets), _CHUNK):
            chunk = targets[begin : begin + _CHUNK]
            yield ids[begin : begin + _CHUNK].with_columns(
                history=_history_lists(purchases, chunk, articles, options.history)
            )

    nothing = np.zeros(0, dtype=np.int64)
    category, group = (
        text_codes(articles[name])[0] for name in ("product_type_name", "product_group_name")
    )
    pools = pool_chunks(
        relevant=Judged(np.arange(len(item)), item),
        irrelevant=Judged(nothing, nothing),
        target_R=item,
        ranges=item_ranges(category, group, hashes_I),
        hashes_R=hashes_R,
        pool=config.data.pool,
    )
    qrels = pl.select(
        request_ids,
        item_id=ids["target_id"],
        gain=pl.repeat(1.0, len(ids), dtype=pl.Float32),
        label=pl.repeat("purchase", len(ids), dtype=pl.String),
    )
    return Prepared(_catalogue(articles), request_ids, request_chunks(), qrels, pools)


def _catalogue(articles: pl.DataFrame) -> pl.DataFrame:
    text = [
        *(
            "prod_name",
            "product_type_name",
            "graphical_appearance_name",
            "colour_group_name",
            "index_group_name",
        ),
        *("section_name", "detail_desc"),
    ]
    return articles.select(
        item_id="article_id",
        title="prod_name",
        text=join_parts([pl.col(name) for name in text]),
        category="product_type_name",
        group="product_group_name",
        brand=pl.lit(""),
        colour="colour_group_name",
        description="detail_desc",
    )
