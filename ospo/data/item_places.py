"""Candidate pools, and how often items were chosen in training: what ``ospo.data.item_side``
measures, from prepared tables or from a preparation that is not written.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from ospo.data.dataset import PreparedData
from ospo.data.hashing import hash_strings
from ospo.data.query_key import query_keys
from ospo.data.writer import Prepared

FOLDS = 5
_MOST = 5_000
_SALT = 16


@dataclass(frozen=True)
class Places:
    """The pools of at most 5,000 requests, chosen by seeded hash.

    pools_RP: (R, P) catalogue rows, -1 padding. relevant_RP: (R, P) bool. group_R: (R,) code of the
    request's shopper, or of its query where there is none. fold_R: (R,) the fold of that group, 0
    to 4. counts_KI: (K, I) how many groups of fold k chose item i in the training split: relevant
    items and purchases shown with requests, once per group. All requests are counted, not the
    chosen ones alone.
    """

    pools_RP: np.ndarray
    relevant_RP: np.ndarray
    group_R: np.ndarray
    fold_R: np.ndarray
    counts_KI: np.ndarray


def prepared_places(data: PreparedData) -> Places:
    """Places of prepared tables in memory. Raises InputError where stats.json is damaged."""
    row, place = np.nonzero(data.gains_RP > 0)
    pairs = row.astype(np.int64) * len(data.catalogue) + data.pools_RP[row, place]
    return _places(data.catalogue, [data.requests.frame], [data.pools_RP], pairs, data.language)


def unwritten_places(prepared: Prepared, language: str) -> Places:
    """Places of a preparation, whose chunks are used up; never more than the chosen requests'
    pools in memory. language: of the queries.
    """
    pairs = relevant_pairs(prepared)
    return _places(
        prepared.catalogue, prepared.request_chunks, prepared.pool_chunks, pairs, language
    )


def relevant_pairs(prepared: Prepared) -> np.ndarray:
    """(N,) int64, request row · number of items + catalogue row, of each relevant item of a request
    of a preparation.
    """
    ids = prepared.request_ids.alias("request_id").to_frame().with_row_index("row")
    items = prepared.catalogue.select("item_id").with_row_index("item")
    relevant = (
        prepared.qrels.filter(pl.col("gain") > 0)
        .join(ids, on="request_id")
        .join(items, on="item_id")
        .select(pair=pl.col("row").cast(pl.Int64) * len(items) + pl.col("item"))
    )
    return relevant["pair"].to_numpy()


def _places(
    catalogue: pl.DataFrame,
    requests: Iterable[pl.DataFrame],
    pools: Iterable[np.ndarray],
    relevant: np.ndarray,
    language: str,
) -> Places:
    """relevant: request row · number of items + catalogue row."""
    items = catalogue.select("item_id").with_row_index("item")
    owners, bought, begin = [], [], 0
    for chunk in requests:
        owners.append(_owners(chunk, language))
        row, item = _history(chunk, items)
        bought.append((row + begin) * len(items) + item)
        begin += len(chunk)
    owner = pl.concat(owners)
    groups = owner["key"].unique().sort()
    codes = pl.DataFrame({"key": groups}).with_row_index("group")
    group_R = owner.join(codes, on="key", how="left", maintain_order="left")["group"].to_numpy()
    order = np.argsort(hash_strings(groups, _SALT), kind="stable")
    fold_G = np.empty(len(groups), dtype=np.int64)
    fold_G[order] = np.arange(len(groups)) % FOLDS

    chosen = _chosen(owner["request_id"])
    pools_RP = _rows(pools, chosen)
    relevant_RP = np.isin(chosen[:, None] * len(items) + pools_RP, relevant) & (pools_RP >= 0)
    row, item = np.divmod(np.concatenate([relevant, *bought]), len(items))
    training = (owner["split"] == "train").to_numpy()[row]
    once = np.unique(group_R[row[training]].astype(np.int64) * len(items) + item[training])
    group, item = np.divmod(once, len(items))
    counts = np.bincount(fold_G[group] * len(items) + item, minlength=FOLDS * len(items))
    return Places(
        pools_RP,
        relevant_RP,
        group_R[chosen].astype(np.int64),
        fold_G[group_R[chosen]],
        counts.reshape(FOLDS, len(items)),
    )


def _owners(chunk: pl.DataFrame, language: str) -> pl.DataFrame:
    """request_id, split and key: the shopper, or the query's normal form where there is none."""
    shopper = pl.col("customer_id")
    owned = chunk.with_columns(pl.concat_str(pl.lit("s "), shopper).alias("key"))
    alone = (chunk["customer_id"] == "").to_numpy()
    if alone.any():
        key = "q " + query_keys(chunk["query"], language)
        owned = owned.with_columns(
            key=pl.when(shopper == "").then(pl.lit(key)).otherwise(pl.col("key"))
        )
    return owned.select("request_id", "split", "key")


def _history(chunk: pl.DataFrame, items: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows (within the chunk) and catalogue rows of the purchases shown with training requests."""
    long = (
        chunk.with_row_index("row")
        .filter(pl.col("split") == "train")
        .select("row", purchase=pl.col("history").list.eval(pl.element().struct.field("item_id")))
        .explode("purchase")
        .join(items, left_on="purchase", right_on="item_id", maintain_order="left")
    )
    return long["row"].to_numpy().astype(np.int64), long["item"].to_numpy().astype(np.int64)


def _chosen(request_ids: pl.Series) -> np.ndarray:
    """Rows of at most 5,000 requests, ascending."""
    hashes = hash_strings(request_ids, _SALT)
    return np.sort(np.argsort(hashes, kind="stable")[:_MOST])


def _rows(pools: Iterable[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """The chosen rows of pools that come in chunks."""
    parts, begin = [], 0
    for chunk in pools:
        low, high = np.searchsorted(chosen, [begin, begin + len(chunk)])
        parts.append(chunk[chosen[low:high] - begin].astype(np.int64))
        begin += len(chunk)
    return np.concatenate(parts)
