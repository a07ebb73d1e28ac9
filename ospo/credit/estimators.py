"""Estimators of Shapley and Owen values from a budget of coalition evaluations.

An estimator is a pair of pure functions, so that the coalitions of all completions of a step can be
evaluated in one batched call: ``plan`` names the coalitions, ``fit`` turns their values into
credit.

    plan(n, unions, budget, rng) -> masks (K, n) bool, the empty and the full coalition among them
    fit(n, unions, masks, values) -> phi (n,) float64

``budget`` counts distinct coalitions, the empty and the full one included. All are seeded through
``rng``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np

from ospo.credit.owen import check_unions, owen_values, shapley_values, shapley_weights

Partition = tuple[tuple[int, ...], ...]
MAX_EXACT_PLAYERS = 16


class Estimator(ABC):
    """Credit from some of the 2**n coalitions of a game."""

    name: str
    efficient = True  # Σφ = v(N) − v(∅) exactly
    supports_unions = True
    wants_scores = False  # can use the retriever's pool scores; see ospo.credit.bayes.Surrogate

    @abstractmethod
    def plan(self, n: int, unions: Partition, budget: int, rng: np.random.Generator) -> np.ndarray:
        """Coalitions to evaluate, (K, n) bool. Raises ValueError where the budget cannot do."""

    @abstractmethod
    def fit(self, n: int, unions: Partition, masks: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Credit (n,) from ``values`` (K,) of the planned ``masks`` (K, n)."""

    def used(self, n: int, unions: Partition, evaluated: int, scored: bool) -> str:
        """Name of the estimator that does the work for ``evaluated`` coalitions of n players.

        ``scored``: whether their pool scores are known.
        """
        return self.name

    def estimate(
        self,
        value: Callable[[np.ndarray], np.ndarray],
        n: int,
        budget: int,
        *,
        unions: Partition = (),
        seed: int = 0,
    ) -> np.ndarray:
        """Plan, evaluate ``value(masks (K, n)) -> (K,)`` once, and fit: the whole of it for one
        game.
        """
        if unions:
            unions = check_unions(unions, n)
        self._check(unions)
        masks = self.plan(n, unions, budget, np.random.default_rng(seed))
        return self.fit(n, unions, masks, check_evaluations(masks, value(masks)))

    def _check(self, unions: Partition) -> None:
        if unions and not self.supports_unions:
            raise ValueError(
                f"estimator: {self.name} has no Owen variant; use unions none, or exact, "
                "permutation or auto"
            )


def check_evaluations(masks: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``values`` as (K,) float64. Raises ValueError for a wrong length or a non-finite value,
    naming the coalition.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(masks),):
        raise ValueError(
            f"values: wrong length {values.shape}, {len(masks)} coalitions were asked for"
        )
    finite = np.isfinite(values)
    if not finite.all():
        first = int(np.argmin(finite))
        members = np.flatnonzero(masks[first]).tolist()
        raise ValueError(f"values: non-finite value {values[first]} of coalition {members}")
    return values


def masks_of(codes: np.ndarray, n: int) -> np.ndarray:
    """Coalitions (K, n) bool of their bit masks (K,)."""
    return (codes[:, None] >> np.arange(n)[None, :] & 1).astype(bool)


def all_masks(n: int) -> np.ndarray:
    """All coalitions in the order of their bit masks, (2**n, n) bool."""
    return masks_of(np.arange(1 << n), n)


def owen_coalitions(n: int, unions: Partition) -> np.ndarray:
    """The coalitions that the exact value needs, as sorted bit masks: all 2**n for Shapley, fewer
    for Owen.
    """
    if not unions:
        return np.arange(1 << n)
    found: set[int] = set()
    bits = [sum(1 << i for i in part) for part in unions]
    for k, part in enumerate(unions):
        others = [0]
        for j, bit in enumerate(bits):
            if j != k:
                others += [mask | bit for mask in others]
        inside = [0]
        for i in part:
            inside += [mask | 1 << i for mask in inside]
        found.update(o | t for o in others for t in inside)
    return np.array(sorted(found))


def exact_evaluations(n: int, unions: Partition = ()) -> int:
    """How many coalitions the exact value needs."""
    if n > MAX_EXACT_PLAYERS:
        return 1 << 62
    return len(owen_coalitions(n, unions)) if unions else 1 << n


class Exact(Estimator):
    """Every coalition that the Shapley (Owen) value needs; the budget is not looked at. n ≤ 16."""

    name = "exact"

    def plan(self, n, unions, budget, rng):
        if n > MAX_EXACT_PLAYERS:
            raise ValueError(
                f"estimator: exact is for at most {MAX_EXACT_PLAYERS} segments, not {n}; use auto"
            )
        return masks_of(owen_coalitions(n, unions), n)

    def fit(self, n, unions, masks, values):
        if not unions:
            return shapley_values(values)
        full = np.zeros(1 << n)
        full[masks @ (1 << np.arange(n))] = values  # the other coalitions have weight zero
        return owen_values(full, unions)


class Contiguous(Estimator):
    """The paper's estimator: windows of neighbouring segments (arXiv 2601.08403; spec §2.4).

    Only windows of at most ``window`` neighbours, ∅ and N, at most ``budget`` of them (a seeded
    sample that keeps ∅ and N); φ_i = Σ over evaluated pairs (S, S ∪ {i}) of (v(S ∪ {i}) − v(S)) /
    (n · C(n−1, |S|)). It does not satisfy efficiency: the pairs that are not evaluated count as
    zero. With unions, a pair has the Owen value's weight, which is zero unless S is a set of whole
    unions and a part of i's.
    """

    name = "contiguous"
    efficient = False

    def __init__(self, window: int = 8):
        if window < 1:
            raise ValueError(f"estimator: a window of {window}, at least 1 is needed")
        self.window = window

    def plan(self, n, unions, budget, rng):
        windows = [
            (a, b) for a in range(n) for b in range(a + 1, min(a + self.window, n) + 1) if b - a < n
        ]
        if len(windows) > budget - 2:
            keep = rng.choice(len(windows), size=max(budget - 2, 0), replace=False)
            windows = [windows[i] for i in sorted(keep)]
        masks = np.zeros((len(windows) + 2, n), dtype=bool)
        for row, (a, b) in enumerate(windows, start=1):
            masks[row, a:b] = True
        masks[-1] = True
        return masks

    def fit(self, n, unions, masks, values):
        index = {mask.tobytes(): k for k, mask in enumerate(masks)}
        weights = shapley_weights(n)
        phi = np.zeros(n)
        for mask, value in zip(masks, values, strict=True):
            members = np.flatnonzero(mask)
            for i in map(int, members):
                without = mask.copy()
                without[i] = False
                k = index.get(without.tobytes())
                if k is not None:
                    weight = (
                        _owen_weight(without, i, unions) if unions else weights[len(members) - 1]
                    )
                    phi[i] += weight * (value - values[k])
        return phi


def _owen_weight(without: np.ndarray, i: int, unions: Partition) -> float:
    """The Owen value's weight of player i joining the coalition ``without`` (n,); zero where it
    takes no part in it.
    """
    own = next(part for part in unions if i in part)
    whole = 0
    for part in unions:
        if part is not own:
            inside = int(without[list(part)].sum())
            if 0 < inside < len(part):
                return 0.0
            whole += inside > 0
    inside = int(without[list(own)].sum())
    return 1.0 / (
        len(unions) * math.comb(len(unions) - 1, whole) * len(own) * math.comb(len(own) - 1, inside)
    )


class Permutation(Estimator):
    """Marginal contributions along random orders, each followed by its reverse (antithetic pairs).

    Castro et al. 2009; Mitchell et al. 2022 for the antithetic pairs. Efficient, since each order
    telescopes. With unions the orders keep each union together, whose mean is the Owen value. Needs
    a budget of at least n + 1.
    """

    name = "permutation"

    def plan(self, n, unions, budget, rng):
        if n == 0:
            return np.zeros((1, 0), dtype=bool)
        if budget < n + 1:
            raise ValueError(
                f"estimator: permutation needs a budget of at least {n + 1} for {n} segments, not "
                f"{budget}"
            )
        seen: set[bytes] = set()
        chains: list[np.ndarray] = []
        order = np.arange(n)
        for attempt in range(4 * budget):
            order = order[::-1] if attempt % 2 else _random_order(n, unions, rng)
            chain = np.zeros((n + 1, n), dtype=bool)
            for step, i in enumerate(order):
                chain[step + 1 :, i] = True
            keys = {mask.tobytes() for mask in chain}
            if len(seen | keys) > budget:
                break
            seen |= keys
            chains.append(chain)
        return np.concatenate(chains)

    def fit(self, n, unions, masks, values):
        phi = np.zeros(n)
        if n == 0:
            return phi
        steps = np.diff(values.reshape(-1, n + 1), axis=1)
        joined = np.diff(masks.reshape(-1, n + 1, n).astype(np.int8), axis=1).argmax(axis=2)
        np.add.at(phi, joined.ravel(), steps.ravel())
        return phi / len(steps)


def _random_order(n: int, unions: Partition, rng: np.random.Generator) -> np.ndarray:
    if not unions:
        return rng.permutation(n)
    return np.concatenate(
        [rng.permutation(np.array(unions[k])) for k in rng.permutation(len(unions))]
    )


def _sample_of_size(
    n: int, size: int, count: int, rng: np.random.Generator, seen: set[bytes]
) -> list[np.ndarray]:
    """Up to ``count`` coalitions of ``size`` members that are not in ``seen``, to which they are
    added.
    """
    if math.comb(n, size) <= 512:  # few enough to choose among those that are left
        left = [mask for mask in _of_size(n, size) if mask.tobytes() not in seen]
        chosen = [left[i] for i in rng.permutation(len(left))[:count]]
        seen.update(mask.tobytes() for mask in chosen)
        return chosen
    found: list[np.ndarray] = []
    for _ in range(20 * count):
        if len(found) == count:
            break
        mask = np.zeros(n, dtype=bool)
        mask[rng.permutation(n)[:size]] = True
        if mask.tobytes() not in seen:
            seen.add(mask.tobytes())
            found.append(mask)
    return found


def _ends(n: int) -> list[np.ndarray]:
    return [np.zeros(n, dtype=bool), np.ones(n, dtype=bool)] if n else [np.zeros(0, dtype=bool)]


class Stratified(Estimator):
    """Sampling stratified by size (after Kolpaczki et al. 2024, stratified SVARM).

    φ_i = (1/n) Σ_s [mean of v over coalitions of size s+1 with i − mean over coalitions of size s
    without i]; every coalition serves all players. An empty stratum takes the mean of its size. The
    error of efficiency is spread evenly over the players. Complements are drawn in pairs.
    """

    name = "stratified"
    supports_unions = False

    def plan(self, n, unions, budget, rng):
        masks = _ends(n)
        seen = {mask.tobytes() for mask in masks}
        pairs = [(s, n - s) for s in range(1, n // 2 + 1)]
        sizes = list(dict.fromkeys(size for pair in pairs for size in pair))
        while len(masks) < min(budget, 1 << n):
            before = len(masks)
            for size in sizes:
                masks += _sample_of_size(n, size, min(2, budget - len(masks)), rng, seen)
            if len(masks) == before:
                break
        return np.array(masks)

    def fit(self, n, unions, masks, values):
        if n == 0:
            return np.zeros(0)
        sizes = masks.sum(axis=1)
        total = values[sizes == n][0] - values[sizes == 0][0]
        phi = np.zeros(n)
        known = np.array([s for s in range(n + 1) if (sizes == s).any()])
        size_mean = np.interp(np.arange(n + 1), known, [values[sizes == s].mean() for s in known])
        for s in range(n + 1):
            rows = sizes == s
            inside, values_s = masks[rows], values[rows]
            with_n, without_n = inside.sum(axis=0), (~inside).sum(axis=0)
            if s:
                phi += np.where(with_n, values_s @ inside / np.maximum(with_n, 1), size_mean[s])
            if s < n:
                phi -= np.where(
                    without_n, values_s @ ~inside / np.maximum(without_n, 1), size_mean[s]
                )
        phi /= n
        return phi + (total - phi.sum()) / n


class Kernel(Estimator):
    """KernelSHAP regression (Lundberg & Lee 2017): paired, efficiency as a constraint,
    leverage-score sampling.

    Complementary pairs are drawn without replacement with every size equally likely (leverage
    scores: Musco & Witter 2025), small sizes entirely where the budget covers them, and weighted by
    the Shapley kernel over the probability of being drawn. Least squares on the players' main
    effects subject to Σφ = v(N) − v(∅).
    """

    name = "kernel"
    supports_unions = False

    def plan(self, n, unions, budget, rng):
        masks = _ends(n)
        if n < 2:
            return np.array(masks)
        seen = {mask.tobytes() for mask in masks}
        room = min(budget, 1 << n) - 2
        pairs = {
            s: math.comb(n, s) if 2 * s < n else math.comb(n, s) // 2 for s in range(1, n // 2 + 1)
        }
        left = room // 2
        open_sizes = sorted(pairs)
        while left > 0 and open_sizes:
            share = -(-left // len(open_sizes))
            size = open_sizes.pop(0)
            count = min(pairs[size], share, left)
            for mask in self._draw(n, size, count, pairs[size], rng, seen):
                masks += [mask, ~mask]
                left -= 1
        return np.array(masks)

    def _draw(self, n, size, count, possible, rng, seen):
        if count < possible:
            drawn: list[np.ndarray] = []
            for _ in range(50 * count):
                if len(drawn) == count:
                    break
                for mask in _sample_of_size(n, size, 1, rng, seen):
                    if (~mask).tobytes() not in seen:
                        seen.add((~mask).tobytes())
                        drawn.append(mask)
            return drawn
        every = list(_of_size(n, size))
        if 2 * size == n:
            every = [mask for mask in every if mask[0]]
        return every

    def fit(self, n, unions, masks, values):
        sizes = masks.sum(axis=1)
        empty, full = values[sizes == 0][0], values[sizes == n][0]
        if n < 2:
            return np.full(n, full - empty)
        rows = (sizes > 0) & (sizes < n)
        weights = np.zeros(len(masks))
        for s in range(1, n):
            count = (sizes == s).sum()
            if count:
                # Shapley kernel over the chance of being drawn: all of a size together weigh
                # 1/(s(n−s)).
                weights[sizes == s] = 1.0 / (s * (n - s) * count)
        return constrained_least_squares(
            masks[rows], values[rows] - empty, weights[rows], full - empty
        )


def _of_size(n: int, size: int) -> Iterator[np.ndarray]:
    for members in combinations(range(n), size):
        mask = np.zeros(n, dtype=bool)
        mask[list(members)] = True
        yield mask


def constrained_least_squares(
    masks: np.ndarray, values: np.ndarray, weights: np.ndarray, total: float
) -> np.ndarray:
    """argmin_φ Σ_S w(S) (v(S) − Σ_{i∈S} φ_i)² subject to Σφ = total; the smallest such φ where it
    is not unique.
    """
    n = masks.shape[1]
    # φ = total/n + P·x with P the projection onto Σ = 0.
    residual = values - masks.sum(axis=1) * total / n
    centred = masks - masks.mean(axis=1, keepdims=True)
    root = np.sqrt(weights)
    x = (
        np.linalg.lstsq(centred * root[:, None], residual * root, rcond=None)[0]
        if len(masks)
        else np.zeros(n)
    )
    return total / n + x - x.mean()
