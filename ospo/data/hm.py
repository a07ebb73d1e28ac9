"""H&M Personalized Fashion Recommendations: raw CSV files → prepared tables.

A request is one purchase (the target), the shopper's purchases of earlier days (the history) and a
query that leaves attributes out. Customers are split by seeded hash, and time is cut: targets of
test and validation customers lie in the last days, targets of training customers before them, so
nothing after the cut is seen in training.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from ospo.config import NO_QUERIES, HmData
from ospo.data.hashing import hash_strings, mix
from ospo.data.hm_files import (
    Purchases,
    article_id,
    read_articles,
    read_customers,
    read_purchases,
)
from ospo.data.pools import Judged, item_ranges, pool_chunks
from ospo.data.queries import read_queries, template_queries, with_supplied_queries
from ospo.data.raw_files import raw_folder
from ospo.data.schemas import (
    HISTORY,
    HM_ARTICLES,
    HM_CUSTOMERS,
    HM_TRANSACTIONS,
)
from ospo.data.source import Source
from ospo.data.split import assign_split, require_splits
from ospo.data.stats import Stats
from ospo.data.text import join_parts, text_codes
from ospo.data.writer import Prepared
from ospo.errors import InputError

_CHUNK = 1 << 16
_MIN_HELD_OUT = 20
"""The holdout window doubles until validation and test hold this many requests each."""


def prepare_hm(source: Source[HmData], stats: Stats) -> Prepared:
    """Read the raw files and build the prepared tables. Raises InputError."""
    raw = raw_folder(source.raw, source.key("raw"), [HM_ARTICLES, HM_TRANSACTIONS, HM_CUSTOMERS])
    options, config = source.options, source.config
    articles = read_articles(raw / HM_ARTICLES, stats)
    customers = read_customers(raw / HM_CUSTOMERS, stats)
    purchases = read_purchases(raw / HM_TRANSACTIONS, articles, customers, stats)
    shares = config.data.split
    splits = assign_split(customers, shares.validation, shares.test, config.seed)
    targets = _choose_targets(purchases, splits.to_numpy(), options, stats)
    if not len(targets):
        fix = f"supply more transactions or loosen data.{source.name} (min_history, holdout_days)"
        raise InputError(raw / HM_TRANSACTIONS, "t_dat", "no purchase has an earlier history", fix)
    hashes_R = _request_hashes(purchases, targets, articles, customers, config.seed)
    if options.max_requests and len(targets) > options.max_requests:
        stats.drop("request_beyond_max_requests", len(targets) - options.max_requests)
        chosen = np.sort(np.argsort(hashes_R, kind="stable")[: options.max_requests])
        targets, hashes_R = targets[chosen], hashes_R[chosen]
    days = source.key("holdout_days")
    fix = f"supply more customers and days, or change {days}, data.split or seed"
    sides = splits.gather(purchases.customer[targets])
    require_splits(raw / HM_TRANSACTIONS, "t_dat", sides, fix, source.evaluation_only)
    # Targets are in (customer, day) order; request ids sort by (customer, article).
    order = np.lexsort((purchases.item[targets], purchases.customer[targets]))
    return _assemble(
        purchases, targets[order], hashes_R[order], articles, customers, splits, source, stats
    )


def _choose_targets(
    purchases: Purchases, splits: np.ndarray, options: HmData, stats: Stats
) -> np.ndarray:
    """Positions of the target purchases, ascending: each customer's latest eligible ones.

    Where the holdout window leaves validation or test fewer than 20 requests, it doubles, up to
    half the time the transactions cover; stats.json has the days used.
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


def _request_hashes(
    purchases: Purchases,
    targets: np.ndarray,
    articles: pl.DataFrame,
    customers: pl.Series,
    seed: int,
) -> np.ndarray:
    """(R,) uint64 hash of each target's customer and article."""
    hashes_I = hash_strings(articles["article_id"], seed)
    hashes_U = hash_strings(customers, seed)
    return mix(hashes_U[purchases.customer[targets]] ^ mix(hashes_I[purchases.item[targets]]))


def _assemble(
    purchases: Purchases,
    targets: np.ndarray,
    hashes_R: np.ndarray,
    articles: pl.DataFrame,
    customers: pl.Series,
    splits: pl.Series,
    source: Source[HmData],
    stats: Stats,
) -> Prepared:
    """The tables of the requests whose targets are the purchases at ``targets``."""
    options, config = source.options, source.config
    item, customer = purchases.item[targets], purchases.customer[targets]
    ids = pl.DataFrame(
        {"customer_id": customers[customer], "target_id": articles["article_id"][item]}
    )
    request_ids = ids.select(
        pl.concat_str("customer_id", "target_id", separator="-").alias("request_id")
    ).to_series()
    ids = ids.with_columns(
        request_ids,
        split=splits.gather(customer),
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
        ranges=item_ranges(category, group, hash_strings(articles["article_id"], config.seed)),
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
