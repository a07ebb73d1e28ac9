"""Credit by Bayesian quadrature: choose the coalitions that say most about φ, then infer φ from
their values.

The Shapley and Owen values are linear functionals of the game, φ = A v. With a Gaussian-process
prior on v over the 2**n coalitions, φ given some values of v is Gaussian too: its mean is the
estimate, and its variance depends on which coalitions were evaluated but not on their values, so
the best set can be chosen beforehand, once for each n (O'Hagan 1991, Bayes–Hermite quadrature; for
Shapley values of small games the same idea with other priors is in Chau, Muandet & Sejdinovic
2023).

    k(S, T) = c₀ + c₁ · |S ∩ T| / n + exp(−θ · |S △ T|) · exp(−ρ · (|S| + |T|) / n)

A free level, additive worth, and what is left over: similar for coalitions that differ in few
segments, and smaller the longer the text. The mean passes through every evaluated value, so Σφ =
v(N) − v(∅) exactly, and with all coalitions evaluated φ is exact. θ, ρ and c₁ were chosen on games
other than those of the benchmark (docs/credit.md); a factor of two in any of them changes the error
by about a tenth.
"""

import math
import threading
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ospo.credit.estimators import Estimator, Partition, all_masks
from ospo.credit.owen import coalition_sizes, owen_values, shapley_values, value_operator

MAX_PLAYERS = 16
LEVEL, ADDITIVE, DECAY, SHRINK = 100.0, 10.0, 0.5, 1.0  # c₀, c₁, θ, ρ
JITTER = 1e-9
SCORE_DECAY, SCORE_SHRINK = 0.3, 1.0


def kernel(
    masks_A: np.ndarray, masks_B: np.ndarray, decay: float = DECAY, shrink: float = SHRINK
) -> np.ndarray:
    """Prior covariance (A, B) of the values of coalitions ``masks_A`` (A, n) and ``masks_B`` (B,
    n).
    """
    a, b = masks_A.astype(np.float64), masks_B.astype(np.float64)
    n = max(a.shape[1], 1)
    both = a @ b.T
    size_a, size_b = a.sum(1)[:, None], b.sum(1)[None, :]
    apart = size_a + size_b - 2 * both
    return LEVEL + ADDITIVE * both / n + np.exp(-decay * apart - shrink * (size_a + size_b) / n)


def _times_kernel(rows: np.ndarray, n: int) -> np.ndarray:
    """``rows`` (R, 2**n) times the kernel of all coalitions, in R · n · 2**n steps.

    The decaying part is a Kronecker product of 2 × 2 matrices, one a player; the others have rank 1
    and n.
    """
    scale = np.exp(-SHRINK * coalition_sizes(n) / n)
    out = rows * scale
    near = math.exp(-DECAY)
    for i in range(n):
        halves = out.reshape(len(rows), 1 << (n - 1 - i), 2, 1 << i)
        out = np.stack(
            [halves[:, :, 0] + near * halves[:, :, 1], near * halves[:, :, 0] + halves[:, :, 1]],
            axis=2,
        )
        out = out.reshape(rows.shape)
    out *= scale
    masks = all_masks(n).astype(np.float64)
    return out + LEVEL * rows.sum(1, keepdims=True) + (ADDITIVE / n) * (rows @ masks) @ masks.T


class _Plan:
    """The prior of one n and union structure: covariances of φ with all values, and the best
    coalitions in order.
    """

    def __init__(self, n: int, unions: Partition):
        self.n = n
        self.masks = all_masks(n)
        self._lock = threading.Lock()
        self.cross = _times_kernel(
            np.asarray(value_operator.__wrapped__(n, unions)), n
        )  # Cov(φ, v), (n, 2**n)
        self.chosen: list[int] = []
        self._factors: list[np.ndarray] = []  # columns of the pivoted Cholesky factor of the kernel
        self._left = (
            np.exp(-2 * SHRINK * coalition_sizes(n) / n) + LEVEL + ADDITIVE * coalition_sizes(n) / n
        )
        self._cross_left = self.cross.copy()
        self._add(0)
        self._add((1 << n) - 1)

    def _add(self, j: int) -> None:
        column = kernel(self.masks, self.masks[j : j + 1])[:, 0]
        for factor in self._factors:
            column = column - factor * factor[j]
        root = math.sqrt(max(column[j], 0) + JITTER)
        factor = column / root
        self._cross_left -= np.outer(self._cross_left[:, j] / root, factor)
        self._left = self._left - factor**2
        self._left[j] = 0
        self._factors.append(factor)
        self.chosen.append(j)

    def design(self, budget: int) -> np.ndarray:
        """The first ``budget`` coalitions, each the one that then lowers the total variance of φ
        most: (K, n).
        """
        with self._lock:
            while len(self.chosen) < min(budget, 1 << self.n):
                gain = (self._cross_left**2).sum(0) / (self._left + JITTER)
                gain[self.chosen] = -1
                self._add(int(gain.argmax()))
        return self.masks[self.chosen[:budget]]


# A plan holds some (n + budget) · 2**n numbers: 1.5 MB for 12 segments, 40 MB for 16.
_small_plans = lru_cache(maxsize=128)(_Plan)
_large_plans = lru_cache(maxsize=4)(_Plan)


def _plan(n: int, unions: Partition) -> _Plan:
    return _small_plans(n, unions) if n <= 12 else _large_plans(n, unions)


class Bayes(Estimator):
    """Bayesian quadrature with the coalitions of least posterior variance. Efficient; n ≤ 16;
    linear in the values.
    """

    name = "bayes"

    def plan(self, n, unions, budget, rng):
        if n > MAX_PLAYERS:
            raise ValueError(
                f"estimator: {self.name} is for at most {MAX_PLAYERS} segments, not {n}; use auto"
            )
        if n == 0:
            return np.zeros((1, 0), dtype=bool)
        masks = _plan(n, unions).design(max(budget, 2))
        # The design treats equal players unequally; a seeded relabelling keeps that from falling on
        # the same places.
        order = np.arange(n)
        for part in unions or (tuple(range(n)),):
            order[list(part)] = rng.permutation(np.array(part))
        return masks[:, order]

    def fit(self, n, unions, masks, values):
        if n == 0:
            return np.zeros(0)
        codes = masks @ (1 << np.arange(n))
        weights = np.linalg.solve(self._gram(masks), values)
        phi = _plan(n, unions).cross[:, codes] @ weights
        # The jitter of the solve leaves about 1e-9 of the total to spread.
        return phi + (values[codes == (1 << n) - 1][0] - values[codes == 0][0] - phi.sum()) / n

    @staticmethod
    def _gram(masks: np.ndarray) -> np.ndarray:
        gram = kernel(masks, masks)
        gram[np.diag_indices_from(gram)] += JITTER
        return gram


class Surrogate(Bayes):
    """The same coalitions, with the retriever's scores as well as the values: the rewards of all
    others are inferred.

    The reward jumps when two items change places, but the scores behind it are smooth in the text.
    A Gaussian process carries each pool item's score from the evaluated coalitions to all 2**n; the
    reward of each follows by the measure itself, and φ is the exact value of that game, in which
    the evaluated coalitions keep their true values. Exact for retrievers whose scores add up over
    segments, once all single segments are evaluated. Efficient.
    """

    name = "surrogate"
    wants_scores = True

    def used(self, n, unions, evaluated, scored):
        return self.name if scored else Bayes.name

    def fit_scores(
        self,
        n: int,
        unions: Partition,
        masks: np.ndarray,
        values: np.ndarray,
        scores: np.ndarray,
        measure: Callable[[np.ndarray], np.ndarray],
    ) -> np.ndarray:
        """As ``fit``, with the pool scores (K, P) of the coalitions and ``measure(scores (M, P)) ->
        values (M,)``.

        Raises ValueError for scores of the wrong shape or NaN.
        """
        if scores.ndim != 2 or len(scores) != len(masks):
            raise ValueError(
                f"scores: wrong shape {scores.shape}, {len(masks)} coalitions were asked for"
            )
        if np.isnan(scores).any():
            raise ValueError("scores: NaN")
        items = np.isfinite(scores).all(axis=0)  # padding scores −inf
        # A text that the retriever sees nothing in (∅ above all) scores every item alike and tells
        # nothing of others.
        told = (
            np.ptp(scores[:, items], axis=1) > 0
            if items.any()
            else np.zeros(len(masks), dtype=bool)
        )
        if n == 0 or len(masks) == 1 << n or told.sum() < 2:
            return self.fit(n, unions, masks, values)
        every = all_masks(n)
        predicted = np.full((len(every), scores.shape[1]), -np.inf)
        predicted[:, items] = interpolate(
            masks[told], scores[told][:, items].astype(np.float64), every
        )
        game = np.asarray(measure(predicted), dtype=np.float64)
        game[masks @ (1 << np.arange(n))] = values
        return owen_values(game, unions) if unions else shapley_values(game)


def interpolate(masks: np.ndarray, scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Posterior mean (M, P) at ``others`` (M, n) of scores (K, P) known at ``masks`` (K, n)."""
    gram = kernel(masks, masks, SCORE_DECAY, SCORE_SHRINK)
    gram[np.diag_indices_from(gram)] += JITTER
    return kernel(others, masks, SCORE_DECAY, SCORE_SHRINK) @ np.linalg.solve(gram, scores)
