"""Ranking measures of many requests at once, from scores over candidate pools.

nDCG goes through ``ospo.reward.ndcg``, the function that trains the policies, so evaluation and reward cannot drift
apart. The others follow the trec_eval definitions behind ir_measures, against which tests check every one of them.

Graded measures (``ndcg@k``) use all gains. Binary ones (``ndcg_exact@10``, ``rr``, ``ap``, ``recall@k``) take as
relevant a request's highest grade: ESCI's Exact products, H&M's article bought.
"""

import numpy as np

from ospo.reward import ndcg

NDCG_CUTS = (10, 20, 50, 100)
RECALL_CUTS = (10, 20, 50, 100, 1000)
MEASURES = (*(f"ndcg@{k}" for k in NDCG_CUTS), "ndcg_exact@10", "rr", "ap", *(f"recall@{k}" for k in RECALL_CUTS))

# The same measures in ir_measures' notation, for tests and for readers who want to recompute a figure.
IR_MEASURES = {
    **{f"ndcg@{k}": f"nDCG@{k}" for k in NDCG_CUTS},
    "ndcg_exact@10": "nDCG@10",
    "rr": "RR",
    "ap": "AP",
    **{f"recall@{k}": f"R@{k}" for k in RECALL_CUTS},
}


def relevant(gains_BP: np.ndarray) -> np.ndarray:
    """The items of each request's highest positive gain: (B, P) bool."""
    best_B1 = gains_BP.max(axis=1, keepdims=True)
    return (gains_BP == best_B1) & (best_B1 > 0)


def rank_order(scores_BP: np.ndarray) -> np.ndarray:
    """Positions of the pool in ranked order, best first; ties keep the pool's (shuffled) order: (B, P) int."""
    return np.argsort(-scores_BP, axis=1, kind="stable")


def measure(scores_BP: np.ndarray, gains_BP: np.ndarray) -> dict[str, np.ndarray]:
    """All of ``MEASURES``: name → (B,) float64 in [0, 1].

    ``scores_BP`` holds -inf for padding (gain 0) and for relevant items that were not retrieved: these count in ideal
    DCG and in the divisors of AP and recall, and are never found. A request without relevant items scores 0 throughout.
    """
    exact_BP = relevant(gains_BP)
    # One sort serves all measures: the nDCGs then see scores already in order.
    order_BP = rank_order(scores_BP)
    ranked_BP = np.take_along_axis(scores_BP, order_BP, axis=1)
    ranked_gains_BP = np.take_along_axis(gains_BP, order_BP, axis=1)
    hits_BP = np.take_along_axis(exact_BP, order_BP, axis=1)

    values = {f"ndcg@{k}": ndcg(ranked_BP, ranked_gains_BP, k) for k in NDCG_CUTS}
    values["ndcg_exact@10"] = ndcg(ranked_BP, hits_BP.astype(np.float32), 10)

    divisor_B = np.maximum(hits_BP.sum(axis=1), 1)
    hits_BP = hits_BP & np.isfinite(ranked_BP)
    some_B = hits_BP.any(axis=1)
    ranks_P = np.arange(1, hits_BP.shape[1] + 1)
    found_BP = np.cumsum(hits_BP, axis=1)
    values["rr"] = np.where(some_B, 1.0 / (1 + np.argmax(hits_BP, axis=1)), 0.0)
    values["ap"] = (hits_BP * found_BP / ranks_P).sum(axis=1) / divisor_B
    for k in RECALL_CUTS:
        values[f"recall@{k}"] = found_BP[:, min(k, hits_BP.shape[1]) - 1] / divisor_B
    return values


def full_catalogue(
    rows_BK: np.ndarray, scores_BK: np.ndarray, pools_BP: np.ndarray, gains_BP: np.ndarray, items: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and gains (B, K + P) for ``measure`` from a search of the whole catalogue.

    ``rows_BK``, ``scores_BK`` are what the search returned, ``pools_BP`` (-1 padding) and ``gains_BP`` the candidate
    pools, which hold every relevant item. Relevant items that the search did not return are appended, unretrieved.
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
    gains = np.concatenate([retrieved_gains_BK, np.zeros((count, gap)), np.where(missing_BP, gains_BP, 0)], axis=1)
    return scores, gains
