"""Ranking measures of many requests at once, from scores over candidate pools.

Graded nDCG (``ndcg@k``, all gains) is ``ospo.reward.ndcg.ndcg``, the function that trains the
policies, so that evaluation and reward cannot drift apart. The binary measures come twice, both
computed by ir_measures: ``rr``, ``ap`` and ``recall@k`` count every item with a gain above 0 as
relevant, as trec_eval and ranx do; those named ``…_exact`` count only the items of a request's
highest grade (ESCI's Exact products; on H&M, where there is one grade, the two agree). They depend
on the ranks of the relevant items alone, so the library is asked once for every distinct set of
ranks.
"""

from collections import OrderedDict
from functools import lru_cache

import numpy as np

from ospo.reward.ndcg import ndcg

NDCG_CUTS = (10, 20, 50, 100)
RECALL_CUTS = (10, 20, 50, 100, 1000)
# Each measure and its name in ir_measures' notation, which readers can recompute a figure with.
GRADED = {f"ndcg@{k}": f"nDCG@{k}" for k in NDCG_CUTS}
ANY_GRADE = {"rr": "RR", "ap": "AP", **{f"recall@{k}": f"R@{k}" for k in RECALL_CUTS}}
HIGHEST_GRADE = {
    "ndcg_exact@10": "nDCG@10",
    "rr_exact": "RR",
    "ap_exact": "AP",
    **{f"recall_exact@{k}": f"R@{k}" for k in RECALL_CUTS},
}
MEASURES = (*GRADED, *ANY_GRADE, *HIGHEST_GRADE)
# What the library is asked for: the measures of one set of relevant items, in this order.
BINARY = tuple(HIGHEST_GRADE.values())

MEMO = 100_000  # sets of ranks remembered: some 30 MB
_memo: OrderedDict[bytes, tuple[float, ...]] = OrderedDict()


def highest(gains_BP: np.ndarray) -> np.ndarray:
    """The items of each request's highest positive gain: (B, P) bool."""
    best_B1 = gains_BP.max(axis=1, keepdims=True)
    return (gains_BP == best_B1) & (best_B1 > 0)


def rank_order(scores_BP: np.ndarray) -> np.ndarray:
    """Positions of the pool in ranked order, best first; ties keep the pool's (shuffled) order: (B,
    P) int.
    """
    return np.argsort(-scores_BP, axis=1, kind="stable")


def measure(scores_BP: np.ndarray, gains_BP: np.ndarray) -> dict[str, np.ndarray]:
    """All of ``MEASURES``: name → (B,) float64 in [0, 1].

    ``scores_BP`` holds -inf for padding (gain 0) and for relevant items that were not retrieved:
    these count in ideal DCG and in the divisors of AP and recall only. A request without relevant
    items scores 0 throughout.
    """
    order_BP = rank_order(scores_BP)
    ranked_BP = np.take_along_axis(scores_BP, order_BP, axis=1)
    ranked_gains_BP = np.take_along_axis(gains_BP, order_BP, axis=1)
    # The nDCGs then see scores already in order.
    values = {f"ndcg@{k}": ndcg(ranked_BP, ranked_gains_BP, k) for k in NDCG_CUTS}
    found_BP = np.isfinite(ranked_BP)
    for names, hits_BP in (
        (ANY_GRADE, ranked_gains_BP > 0),
        (HIGHEST_GRADE, np.take_along_axis(highest(gains_BP), order_BP, axis=1)),
    ):
        table_BM = binary_measures(hits_BP & found_BP, hits_BP.sum(axis=1))
        values |= {name: table_BM[:, BINARY.index(text)] for name, text in names.items()}
    return values


def binary_measures(hits_BP: np.ndarray, relevant_B: np.ndarray) -> np.ndarray:
    """The measures of ``BINARY`` (B, M) float64 by ir_measures.

    ``hits_BP`` (B, P) bool: whether a relevant item stands on that rank; ``relevant_B`` (B,): how
    many there are in all, retrieved or not.
    """
    keys = [
        bits.tobytes().rstrip(b"\0") + b"/%d" % count
        for bits, count in zip(np.packbits(hits_BP, axis=1), relevant_B.tolist(), strict=True)
    ]
    new = {key: b for b, key in enumerate(keys) if key not in _memo}
    if new:
        places = list(new.values())
        found = _by_library(
            [np.flatnonzero(hits_BP[b]) for b in places], relevant_B[places].tolist()
        )
        _memo.update(zip(new, found, strict=True))
    table_BM = np.array([_memo[key] for key in keys], dtype=np.float64).reshape(
        len(keys), len(BINARY)
    )
    while len(_memo) > MEMO:
        _memo.popitem(last=False)
    return table_BM


@lru_cache(maxsize=16)
def _ranking(length: int) -> dict[str, float]:
    """A run of ``length`` items named by their rank, from 0."""
    return {str(rank): float(length - rank) for rank in range(length)}


def _by_library(ranks: list[np.ndarray], relevant: list[int]) -> list[tuple[float, ...]]:
    """ir_measures' values for each set of ranks (from 0, ascending) at which relevant items were
    retrieved.
    """
    import ir_measures

    wanted = {ir_measures.parse_measure(text): m for m, text in enumerate(BINARY)}
    values = np.zeros((len(ranks), len(BINARY)))
    runs, qrels = {}, {}
    for n, (ranks_H, count) in enumerate(zip(ranks, relevant, strict=True)):
        if not len(ranks_H):
            continue  # nothing found: all of them are 0
        # What ranks below the last relevant item changes nothing: a power of two lets rankings be
        # shared.
        runs[str(n)] = _ranking(1 << int(ranks_H[-1]).bit_length())
        lost = range(count - len(ranks_H))
        qrels[str(n)] = dict.fromkeys(map(str, ranks_H.tolist()), 1) | {
            f"lost {i}": 1 for i in lost
        }
    if runs:
        for metric in ir_measures.iter_calc(list(wanted), qrels, runs):
            values[int(metric.query_id), wanted[metric.measure]] = metric.value
    return [tuple(row) for row in values.tolist()]


def full_catalogue(
    rows_BK: np.ndarray,
    scores_BK: np.ndarray,
    pools_BP: np.ndarray,
    gains_BP: np.ndarray,
    items: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and gains (B, K + P) for ``measure`` from a search of the whole catalogue.

    ``rows_BK``, ``scores_BK`` are what the search returned, ``pools_BP`` (-1 padding) and
    ``gains_BP`` the candidate pools, which hold every relevant item. Relevant items that the search
    did not return are appended, unretrieved.
    """
    count = len(rows_BK)
    offset_B1 = np.arange(count)[:, None] * items
    keys_BP = np.where((gains_BP > 0) & (pools_BP >= 0), pools_BP + offset_B1, -1)
    found_BK = rows_BK + offset_B1
    order = np.argsort(keys_BP, axis=None, kind="stable")
    sorted_keys = keys_BP.ravel()[order]
    place_BK = np.minimum(np.searchsorted(sorted_keys, found_BK), len(sorted_keys) - 1)
    match_BK = sorted_keys[place_BK] == found_BK
    retrieved_gains_BK = np.where(match_BK, gains_BP.ravel()[order][place_BK], 0)
    missing_BP = (keys_BP >= 0) & ~np.isin(keys_BP, found_BK)
    # Unretrieved items must lie beyond every nDCG's cut-off, however little was searched.
    gap = max(0, max(NDCG_CUTS) - rows_BK.shape[1])
    unranked = np.full((count, gap + pools_BP.shape[1]), -np.inf, dtype=scores_BK.dtype)
    scores = np.concatenate([scores_BK, unranked], axis=1)
    gains = np.concatenate(
        [retrieved_gains_BK, np.zeros((count, gap)), np.where(missing_BP, gains_BP, 0)], axis=1
    )
    return scores, gains
