"""Exact Shapley and Owen values of a game given by the value of each of its 2**n coalitions.

A game among n players is an array ``values`` of length 2**n indexed by bit mask: bit j of the index
is set where player j is present, so ``values[0]`` is v(∅) and ``values[-1]`` is v(N).
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

MAX_PLAYERS = 20  # 2**20 float64 values are 8 MB; beyond that, estimate


def shapley_weights(n: int) -> np.ndarray:
    """Weights s!(n−s−1)!/n! of a marginal contribution to a coalition of s = 0 … n−1 others, shape
    (n,).
    """
    return np.array([1.0 / (n * math.comb(n - 1, s)) for s in range(n)])


@lru_cache(maxsize=32)
def coalition_sizes(n: int) -> np.ndarray:
    """Number of players in each of the 2**n coalitions, shape (2**n,), int64. Read-only."""
    sizes = np.zeros(1, dtype=np.int64)
    for _ in range(n):
        sizes = np.concatenate([sizes, sizes + 1])
    sizes.flags.writeable = False
    return sizes


def check_values(values: np.ndarray) -> tuple[np.ndarray, int]:
    """``values`` as float64 with its number of players. Raises ValueError for a wrong shape or
    non-finite values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(
            f"values: wrong shape {array.shape}, a game needs a 1-D array of 2**n values"
        )
    n = array.size.bit_length() - 1
    if array.size == 0 or array.size != 1 << n:
        raise ValueError(f"values: wrong length {array.size}, a game needs 2**n values")
    if n > MAX_PLAYERS:
        raise ValueError(
            f"values: wrong length {array.size}, exact values are for at most {MAX_PLAYERS} players"
        )
    finite = np.isfinite(array)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(f"values: non-finite value {array[first]} of coalition {first:#b}")
    return array, n


def check_unions(unions: Sequence[Sequence[int]], n: int) -> tuple[tuple[int, ...], ...]:
    """``unions`` as tuples. Raises ValueError unless they are a partition of range(n) into
    non-empty parts.
    """
    parts = tuple(tuple(int(i) for i in part) for part in unions)
    seen: set[int] = set()
    for part in parts:
        if not part:
            raise ValueError(f"unions: not a partition of range({n}), one union is empty")
        for i in part:
            if not 0 <= i < n:
                raise ValueError(
                    f"unions: not a partition of range({n}), player {i} does not exist"
                )
            if i in seen:
                raise ValueError(
                    f"unions: not a partition of range({n}), player {i} is named twice"
                )
            seen.add(i)
    if len(seen) != n:
        missing = min(set(range(n)) - seen)
        raise ValueError(f"unions: not a partition of range({n}), player {missing} is in no union")
    return parts


def _shapley(values: np.ndarray, n: int) -> np.ndarray:
    weights = shapley_weights(n) if n else np.zeros(0)
    phi = np.empty(n)
    # The others' coalition sizes, in the order that remains when bit i is cut out of the index: the
    # same for every i.
    weight_S = weights[coalition_sizes(n - 1)] if n else weights
    for i in range(n):
        halves = values.reshape(1 << (n - 1 - i), 2, 1 << i)
        phi[i] = weight_S @ (halves[:, 1] - halves[:, 0]).ravel()
    return phi


def shapley_values(values: np.ndarray) -> np.ndarray:
    """Exact Shapley values, (2**n,) → (n,) float64, in the unit of ``values``.

    φ_i = Σ_{S ⊆ N∖{i}} s!(n−s−1)!/n! · [v(S ∪ {i}) − v(S)]   (Shapley, 1953)

    They sum to v(N) − v(∅). Raises ValueError for a wrong shape, a length that is no power of two,
    more than 20 players, or a non-finite value.
    """
    return _shapley(*check_values(values))


def owen_values(values: np.ndarray, unions: Sequence[Sequence[int]]) -> np.ndarray:
    """Exact Owen values under the union structure ``unions``, (2**n,) → (n,) float64.

    φ_i = Σ_{H ⊆ M∖{k}} Σ_{T ⊆ B_k∖{i}} |H|!(m−|H|−1)!/m! · |T|!(b_k−|T|−1)!/b_k!
          · [v(Q_H ∪ T ∪ {i}) − v(Q_H ∪ T)]
    for i ∈ B_k, with Q_H the players of the unions in H   (Owen, 1977)

    Computed as the Shapley value inside each union B_k of the game g_k(T) = Σ_H |H|!(m−|H|−1)!/m! ·
    v(Q_H ∪ T), which needs 2**(m−1+b_k) coalitions a union. With singletons, or with one union, it
    is the Shapley value; the credits of a union sum to its Shapley value in the game among unions
    (quotient property).

    Raises ValueError as :func:`shapley_values` does, and where ``unions`` is not a partition of
    range(n).
    """
    values, n = check_values(values)
    parts = check_unions(unions, n)
    phi = np.empty(n)
    for k, part in enumerate(parts):
        others_H, weights_H = _other_unions(parts, k)
        inside_T = _subset_masks(np.array([1 << i for i in part], dtype=np.int64))
        game_T = weights_H @ values[others_H[:, None] | inside_T[None, :]]
        phi[list(part)] = _shapley(game_T, len(part))
    return phi


def _subset_masks(bits: np.ndarray) -> np.ndarray:
    """Bit masks of all unions of ``bits``, (b,) → (2**b,), in the order of the subset's own bit
    mask.
    """
    masks = np.zeros(1, dtype=np.int64)
    for bit in bits:
        masks = np.concatenate([masks, masks | bit])
    return masks


def _other_unions(parts: tuple[tuple[int, ...], ...], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks Q_H of all coalitions H of the unions other than k, and their weights
    |H|!(m−|H|−1)!/m!.
    """
    bits = np.array(
        [sum(1 << i for i in part) for j, part in enumerate(parts) if j != k], dtype=np.int64
    )
    weights = shapley_weights(len(parts))
    return _subset_masks(bits), weights[coalition_sizes(len(parts) - 1)]


@lru_cache(maxsize=256)
def value_operator(n: int, unions: tuple[tuple[int, ...], ...] = ()) -> np.ndarray:
    """The matrix A with φ = A · values, shape (n, 2**n): Shapley without ``unions``, Owen with
    them. Read-only.

    For estimators: both values are linear in the game. n up to 12 or so: the matrix holds n · 2**n
    numbers.
    """
    matrix = np.zeros((n, 1 << n))
    parts = check_unions(unions, n) if unions else (tuple(range(n)),) if n else ()
    for k, part in enumerate(parts):
        others_H, weights_H = _other_unions(parts, k)
        inner = shapley_weights(len(part))
        for position, i in enumerate(part):
            rest = np.array([1 << j for q, j in enumerate(part) if q != position], dtype=np.int64)
            inside_T = _subset_masks(rest)
            weight_HT = weights_H[:, None] * inner[coalition_sizes(len(part) - 1)][None, :]
            without_HT = others_H[:, None] | inside_T[None, :]
            matrix[i, without_HT] -= weight_HT
            matrix[i, without_HT | (1 << i)] += weight_HT
    matrix.flags.writeable = False
    return matrix
