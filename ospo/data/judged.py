"""Judged queries → requests, qrels and pools: what ESCI, BEIR, TREC and click logs have in
common.

A table of judgements (``judged``) has query_id, query, item_id, item (catalogue row), label, gain:
one row per query and product.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from scipy.sparse import csr_array

from ospo.config import Config
from ospo.data.hashing import hash_strings
from ospo.data.pools import Judged, item_ranges, pool_chunks
from ospo.data.query_key import query_keys
from ospo.data.schemas import HISTORY
from ospo.data.split import assign_split
from ospo.data.stats import Stats
from ospo.data.text import text_codes
from ospo.data.writer import Prepared


def keep_queries(
    judged: pl.DataFrame, stats: Stats, reason: str, condition: pl.Expr
) -> pl.DataFrame:
    """Judgements that meet ``condition``; the queries that lose all of theirs are counted."""
    kept = judged.filter(condition)
    stats.drop(reason, judged["query_id"].n_unique() - kept["query_id"].n_unique())
    return kept


def at_most(judged: pl.DataFrame, most: int, seed: int, stats: Stats) -> pl.DataFrame:
    """Judgements of at most ``most`` queries, chosen by seeded hash of their text; 0: of all."""
    if not most:
        return judged
    queries = judged.select("query_id", "query").unique("query_id", maintain_order=True)
    order = np.argsort(hash_strings(queries["query"], seed + 1), kind="stable")[:most]
    chosen = pl.col("query_id").is_in(queries["query_id"].gather(order.tolist()).implode())
    return keep_queries(judged, stats, "query_beyond_max_requests", chosen)


def groups_of(catalogue: pl.DataFrame, judged: pl.DataFrame) -> pl.Series:
    """Group of each product: its category's most co-judged more frequent category, else the
    category itself.

    For shops without a taxonomy: shoppers' queries relate "charger" to "phone", and annotators
    judged both.
    """
    codes, names = text_codes(catalogue["category"])
    heads = (
        judged.select("query_id", category=pl.Series(codes).gather(judged["item"]))
        .unique()
        .sort("query_id")
    )
    if names[0] == "":
        heads = heads.filter(pl.col("category") > 0)
    # Queries × categories, 0 or 1: entry (a, b) of MᵀM counts the queries for which both were
    # judged.
    query, category = heads["query_id"].rle_id().to_numpy(), heads["category"].to_numpy()
    judged_QC = csr_array(
        (np.ones(len(heads), np.int32), (query, category)), shape=(len(heads), len(names))
    )
    together_CC = (judged_QC.T @ judged_QC).tocoo()
    size = judged_QC.sum(axis=0)
    child, parent = together_CC.coords
    larger = size[parent] > size[child]
    child, parent, together = child[larger], parent[larger], together_CC.data[larger]
    order = np.lexsort((parent, -together, child))
    first = order[np.concatenate(([True], np.diff(child[order]) != 0))] if len(order) else order
    group = np.arange(len(names))
    group[child[first]] = parent[first]
    return names.gather(group[codes]).alias("group")


def best_first(judged: pl.DataFrame, size: int, stats: Stats) -> pl.DataFrame:
    """The judgements with their request_id, each request's best first; relevant products beyond
    the ``size`` places of a pool left out.
    """
    judged = judged.with_columns(request_id=pl.col("query_id").cast(pl.String))
    judged = judged.sort(["request_id", "gain", "item_id"], descending=[False, True, False])
    place = pl.int_range(pl.len()).over("request_id")
    return stats.keep(judged, "relevant_beyond_pool", ~((pl.col("gain") > 0) & (place >= size)))


def requests_of(judged: pl.DataFrame, config: Config, stats: Stats, language: str) -> pl.DataFrame:
    """One row per request, with its split and the catalogue row of its target as ``item``: queries
    whose normal forms are equal lie on one side. Splits that ``judged`` has as ``split`` stay.
    """
    requests = judged.group_by("request_id", maintain_order=True).first()
    shares = config.data.split
    keys = query_keys(requests["query"], language)
    stats.used |= {
        "queries_joined": requests["query"].n_unique() - keys.n_unique(),
    }
    drawn = assign_split(keys, shares.validation, shares.test, config.seed)
    return requests.select(
        "request_id",
        "split" if "split" in requests.columns else drawn,
        "query",
        "item",
        customer_id=pl.lit(""),
        history=pl.lit([], dtype=HISTORY),
        target_id="item_id",
    )


def _irrelevant(
    judged: pl.DataFrame, others: pl.DataFrame, items: pl.Series, labels: Sequence[str]
) -> Judged:
    """Products judged for a request without being relevant, in the order of ``labels``, sorted by
    request.

    judged: (request row) ``row``, query_id, item, gain and label. others: judgements of labels not
    chosen.
    """
    rows = judged.select("query_id", "row").unique()
    places = pl.DataFrame(
        {"item_id": items, "item": pl.int_range(len(items), dtype=pl.Int32, eager=True)}
    )
    others = (
        others.join(rows, on="query_id").join(places, on="item_id").select("row", "item", "label")
    )
    others = others.join(judged, on=["row", "item"], how="anti").unique(["row", "item"])
    judged = judged.filter(pl.col("gain") <= 0).select("row", "item", "label")
    frame = (
        pl.concat([judged, others])
        .with_columns(pl.col("label").cast(pl.Enum(labels)))
        .sort("row", "label", "item")
    )
    return Judged(frame["row"].to_numpy().astype(np.int64), frame["item"].to_numpy())


def assemble(
    judged: pl.DataFrame,
    others: pl.DataFrame,
    catalogue: pl.DataFrame,
    requests: pl.DataFrame,
    labels: Sequence[str],
    config: Config,
) -> Prepared:
    """Qrels and pools of the filtered judgements, beside their requests.

    others: query_id, item_id and label of judgements that only name hard negatives. labels: every
    label, the nearest to relevant first.
    """
    judged = judged.with_columns(row=judged["request_id"].rle_id())
    relevant = judged.filter(pl.col("gain") > 0)
    category, group = (text_codes(catalogue[name])[0] for name in ("category", "group"))
    pools = pool_chunks(
        relevant=Judged(relevant["row"].to_numpy().astype(np.int64), relevant["item"].to_numpy()),
        irrelevant=_irrelevant(judged, others, catalogue["item_id"], labels),
        target_R=requests["item"].to_numpy(),
        ranges=item_ranges(category, group, hash_strings(catalogue["item_id"], config.seed)),
        hashes_R=hash_strings(requests["request_id"], config.seed + 2),
        pool=config.data.pool,
    )
    qrels = judged.select("request_id", "item_id", "gain", "label").sort("request_id", "item_id")
    return Prepared(catalogue, requests["request_id"], [requests], qrels, pools)
