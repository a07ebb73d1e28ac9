"""nDCG of retriever scores: pure functions over arrays."""

import numpy as np


def discounts(size: int) -> np.ndarray:
    return 1.0 / np.log2(np.arange(size) + 2.0)


def ideal_dcg(gains_BP: np.ndarray, k: int) -> np.ndarray:
    """DCG@k (B,) float64 of the best possible order of ``gains_BP``."""
    best_BK = -np.sort(-np.asarray(gains_BP, dtype=np.float64), axis=1)[:, :k]
    ideal_B = np.zeros(len(best_BK))
    for rank, discount in enumerate(discounts(best_BK.shape[1])):  # added rank by rank, as dcg adds
        ideal_B += best_BK[:, rank] * discount
    return ideal_B


def dcg(scores_PB: np.ndarray, gains_PB: np.ndarray, k: int) -> np.ndarray:
    """DCG@k (B,) float64. Only relevant items' ranks matter, and counting what lies above one beats
    sorting all.

    ``gains_PB`` may be (P, 1): the same for all texts. Terms are added best rank first, one rank at
    a time, so that equal rankings give equal bits whatever the batch.
    """
    size, batch = scores_PB.shape
    counter = np.uint8 if size <= 255 else np.int32
    at_rank_KB = np.zeros((min(k, size), batch))
    if gains_PB.shape[1] == 1:
        above_PB = np.empty((size, batch), dtype=bool)
        for place in np.flatnonzero(gains_PB[:, 0] > 0).tolist():
            score_B = scores_PB[place]
            np.greater_equal(scores_PB[:place], score_B, out=above_PB[:place])  # ties: pool order
            np.greater(scores_PB[place:], score_B, out=above_PB[place:])
            rank_B = above_PB.view(np.uint8).sum(axis=0, dtype=counter)
            ranked = np.flatnonzero(rank_B < k)
            at_rank_KB[rank_B[ranked], ranked] = gains_PB[place, 0]
    else:
        position_P1 = np.arange(size)[:, None]
        relevant_PB = gains_PB > 0
        count_B = relevant_PB.sum(axis=0)
        # Positions of the relevant items, (R, B), in pool order; texts with fewer are left out of
        # the later ones.
        place_RB = np.argsort(~relevant_PB, axis=0, kind="stable")[: int(count_B.max(initial=0))]
        for r, place_B in enumerate(place_RB):
            column_B = np.flatnonzero(count_B > r)
            some_PB = scores_PB if len(column_B) == batch else scores_PB[:, column_B]
            place_B = place_B[column_B]
            score_B = scores_PB[place_B, column_B]
            above_PB = some_PB > score_B
            above_PB |= (some_PB == score_B) & (position_P1 < place_B)
            rank_B = above_PB.view(np.uint8).sum(axis=0, dtype=counter)
            ranked = rank_B < k
            at_rank_KB[rank_B[ranked], column_B[ranked]] = gains_PB[
                place_B[ranked], column_B[ranked]
            ]
    dcg_B = np.zeros(batch)
    for gain_B, discount in zip(at_rank_KB, discounts(len(at_rank_KB)), strict=True):
        dcg_B += gain_B * discount
    return dcg_B


def ndcg(scores_BP: np.ndarray, gains_BP: np.ndarray, k: int, *, retriever: str = "") -> np.ndarray:
    """nDCG@k (B,) float64 with linear gains and log2 discounts.

    nDCG@k = Σ_{r ≤ k} gain_r / log2(r + 1), over the same sum in the best order (Järvelin &
    Kekäläinen, TOIS 2002).

    Args:
        scores_BP: retriever scores; higher ranks first, equal scores rank in pool order, -inf
            (padding) last.
        gains_BP: gains ≥ 0 aligned with the scores; a pool without any relevant item has nDCG 0.
        k: cut-off ≥ 1.
        retriever: named in errors.

    Raises ValueError for a NaN score or shapes that differ.
    """
    scores_BP, gains_BP = np.asarray(scores_BP), np.asarray(gains_BP)
    if scores_BP.shape != gains_BP.shape or scores_BP.ndim != 2:
        raise ValueError(
            f"ndcg: scores {scores_BP.shape} and gains {gains_BP.shape} must be one (B, P) shape"
        )
    if k < 1:
        raise ValueError(f"ndcg: k must be at least 1, got {k}")
    if np.isnan(scores_BP).any():
        raise ValueError(f"retriever {retriever or '(unnamed)'}: returned NaN")
    return ratio(dcg(np.ascontiguousarray(scores_BP.T), gains_BP.T, k), ideal_dcg(gains_BP, k))


def ratio(dcg_B: np.ndarray, ideal_B: np.ndarray) -> np.ndarray:
    return np.divide(dcg_B, ideal_B, out=np.zeros(len(dcg_B)), where=ideal_B > 0)
