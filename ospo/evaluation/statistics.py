"""Is a difference between two policies more than luck? Paired bootstrap, paired randomisation,
Holm's correction.

The unit of resampling is the request or, where several requests come from one shopper, the shopper:
requests of a shopper are not independent, and an interval that took them so would be too narrow.
Policies trained under several seeds add a second level: other requests *and* other training runs
could have been drawn, so the bootstrap draws both, and a difference counts only where it is clear
over both. All comparisons of a table share the same resamples, so ratios of gains (robustness) get
intervals too. Everything is seeded and vectorised.
"""

from dataclasses import dataclass

import numpy as np

_BLOCK = 4_000_000  # resampled units held in memory at once
_WORK = 200_000_000  # units drawn in all: beyond 20,000 requests fewer resamples are enough


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval."""

    value: float
    low: float
    high: float


def cluster_sums(
    values_RC: np.ndarray, groups_R: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sums per group (G, C) and group sizes (G,); without groups every request is its own."""
    if groups_R is None:
        return values_RC, np.ones(len(values_RC))
    _, inverse_R, sizes_G = np.unique(groups_R, return_inverse=True, return_counts=True)
    columns = [
        np.bincount(inverse_R, weights=column, minlength=len(sizes_G)) for column in values_RC.T
    ]
    sums_GC = np.stack(columns, axis=1)
    return sums_GC, sizes_G.astype(np.float64)


def _blocks(resamples: int, units: int) -> list[int]:
    step = max(1, _BLOCK // max(units, 1))
    return [min(step, resamples - start) for start in range(0, resamples, step)]


def _check(values_RC: np.ndarray) -> np.ndarray:
    values_RC = np.asarray(values_RC, dtype=np.float64)
    if values_RC.ndim != 2 or len(values_RC) == 0:
        raise ValueError(
            "need values of shape (requests, comparisons) with at least one request, got "
            f"{values_RC.shape}"
        )
    if not np.isfinite(values_RC).all():
        raise ValueError("values hold NaN or infinity")
    return values_RC


def bootstrap_means(
    values_RC: np.ndarray, resamples: int, seed: int, groups_R: np.ndarray | None = None
) -> np.ndarray:
    """Bootstrap means (B, C) of each column: units drawn with replacement, the same draw for every
    column.

    Efron & Tibshirani, "An Introduction to the Bootstrap", 1993; over clusters: their section 8.
    """
    sums_GC, sizes_G = cluster_sums(_check(values_RC), groups_R)
    generator = np.random.default_rng(seed)
    units = len(sums_GC)
    means = []
    for block in _blocks(resamples, units):
        draws = generator.integers(0, units, size=(block, units))
        # Counts instead of gathers: one matrix product per block serves all columns.
        flat = (draws + np.arange(block)[:, None] * units).ravel()
        counts_BG = (
            np.bincount(flat, minlength=block * units).reshape(block, units).astype(np.float64)
        )
        means.append((counts_BG @ sums_GC) / (counts_BG @ sizes_G)[:, None])
    return np.concatenate(means)


def bootstrap_seed_means(
    values_SRC: np.ndarray, resamples: int, seed: int, groups_R: np.ndarray | None = None
) -> np.ndarray:
    """Bootstrap means (B, C) over training seeds and requests, both drawn with replacement; the
    same for every column.

    values_SRC: (S, R, C), S training seeds of the same policies (paired: seed s is drawn for all
    columns at once). Of S seeds S - 1 are drawn, so that the variance of their mean is the unbiased
    s**2 / S and not (S - 1) / S of it, which matters for the few seeds one has (Rao & Wu,
    "Resampling inference with complex survey data", JASA 1988). With one seed this is
    ``bootstrap_means``.
    """
    values_SRC = np.asarray(values_SRC, dtype=np.float64)
    seeds, requests, columns = values_SRC.shape
    flat_RC = values_SRC.transpose(1, 0, 2).reshape(requests, seeds * columns)
    means_BSC = bootstrap_means(flat_RC, resamples, seed, groups_R).reshape(
        resamples, seeds, columns
    )
    if seeds == 1:
        return means_BSC[:, 0]
    generator = np.random.default_rng([seed, 1])
    drawn_BS = generator.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples)
    return np.einsum("bs,bsc->bc", drawn_BS / (seeds - 1), means_BSC)


def seed_test(differences_SC: np.ndarray) -> np.ndarray:
    """Two-sided p-values (C,) of a paired t-test over S training seeds' mean differences; NaN with
    fewer than two.

    With the three to ten seeds one has, random signs could never reach a small p (2 of 2**S
    assignments are as extreme as the observed one), so this test assumes normality. Differences
    that are all the same and not 0 have p = 0.
    """
    differences_SC = np.asarray(differences_SC, dtype=np.float64)
    if len(differences_SC) < 2:
        return np.full(differences_SC.shape[1], np.nan)
    from scipy.stats import t

    mean_C = differences_SC.mean(axis=0)
    error_C = differences_SC.std(axis=0, ddof=1) / np.sqrt(len(differences_SC))
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic_C = np.where(mean_C == 0, 0.0, np.abs(mean_C) / error_C)
    return 2 * t.sf(statistic_C, df=len(differences_SC) - 1)


def difference_test(
    differences_SRC: np.ndarray, resamples: int, seed: int, groups_R: np.ndarray | None = None
) -> np.ndarray:
    """Two-sided p-values (C,) of paired differences (S training seeds, R requests, C comparisons).

    With one seed the randomisation test over requests (shoppers). With several the larger one of
    that test, of the means over seeds, and of the t-test over seeds: a difference counts only where
    it is clear over requests and over training runs (intersection-union test, Berger 1982).
    """
    differences_SRC = np.asarray(differences_SRC, dtype=np.float64)
    p_C = randomisation_test(differences_SRC.mean(axis=0), resamples, seed, groups_R)
    if len(differences_SRC) > 1:
        p_C = np.maximum(p_C, seed_test(differences_SRC.mean(axis=1)))
    return p_C


def seed_interval(values_S: np.ndarray, level: float = 0.95) -> Interval:
    """The t interval of a mean over S training seeds, for figures with one value per seed. Raises
    ValueError for fewer than two.
    """
    from scipy.stats import t

    values_S = np.asarray(values_S, dtype=np.float64)
    if len(values_S) < 2:
        raise ValueError("an interval over seeds needs at least two of them")
    error = values_S.std(ddof=1) / np.sqrt(len(values_S))
    half = t.ppf((1 + level) / 2, len(values_S) - 1) * error
    mean = float(values_S.mean())
    return Interval(mean, mean - float(half), mean + float(half))


def affordable(resamples: int, units: int) -> int:
    """How many resamples to draw: as asked, fewer (but at least 1,000) where there are very many
    units.

    The interval of a mean over 100,000 requests is narrow and near normal: its quantiles need no
    10,000 draws.
    """
    return min(resamples, max(1000, _WORK // max(units, 1)))


def percentile_interval(estimate: float, draws_B: np.ndarray, level: float = 0.95) -> Interval:
    """The percentile interval of bootstrap draws."""
    low, high = np.quantile(draws_B, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high))


def randomisation_test(
    differences_RC: np.ndarray, resamples: int, seed: int, groups_R: np.ndarray | None = None
) -> np.ndarray:
    """Two-sided p-values (C,) of paired differences: how often random signs give a mean at least as
    far from 0.

    Under the null hypothesis that two policies are exchangeable a request's (a shopper's)
    difference has either sign with equal probability. Fisher 1935; for retrieval: Smucker, Allan &
    Carterette, CIKM 2007. The observed assignment counts as one of the draws, so p is never 0
    (Phipson & Smyth 2010). With 2**units <= resamples all assignments are enumerated and p is
    exact.
    """
    sums_GC, _ = cluster_sums(_check(differences_RC), groups_R)
    units = len(sums_GC)
    observed_C = np.abs(sums_GC.sum(axis=0))
    # Equality up to rounding: the same sum in another order must count as "at least as far".
    threshold_C = observed_C - 1e-12 * np.maximum(1.0, np.abs(sums_GC).sum(axis=0))
    if units < 63 and 2**units <= resamples:
        masks = np.arange(2**units, dtype=np.int64)[:, None] >> np.arange(units) & 1
        extreme_C = (np.abs((2.0 * masks - 1) @ sums_GC) >= threshold_C).sum(axis=0)
        return extreme_C / 2**units
    generator = np.random.default_rng(seed)
    extreme_C = np.zeros(sums_GC.shape[1])
    for block in _blocks(resamples, units):
        bits = np.unpackbits(
            generator.integers(0, 256, size=(block, -(-units // 8)), dtype=np.uint8), axis=1
        )
        signs_BG = bits[:, :units].astype(np.float64) * 2 - 1
        extreme_C += (np.abs(signs_BG @ sums_GC) >= threshold_C).sum(axis=0)
    return (extreme_C + 1) / (resamples + 1)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of a family of p-values (any shape), NaN left out of the family.

    Holm, "A simple sequentially rejective multiple test procedure", 1979: the i-th smallest of m is
    multiplied by m - i + 1, made monotone and capped at 1. Controls the chance of any false claim
    in the whole table.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    flat = p_values.ravel()
    known = np.flatnonzero(~np.isnan(flat))
    order = known[np.argsort(flat[known], kind="stable")]
    m = len(order)
    adjusted = np.full(len(flat), np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(flat[order] * (m - np.arange(m))))
    return adjusted.reshape(p_values.shape)


@dataclass(frozen=True)
class Robustness:
    """Share of the training retriever's gain kept under an unseen one.

    ``kept`` is None where the gain on the training retriever is not clearly above 0 (its 95 %
    interval holds 0): a share of nothing is no number.
    """

    retriever: str
    gain: Interval
    kept: Interval | None


def robustness(
    means_C: np.ndarray, draws_BC: np.ndarray, retrievers: list[str]
) -> list[Robustness]:
    """Mean gains over the raw query by retriever (C,), the training one first, and their bootstrap
    draws (B, C).

    kept = mean gain under the retriever / mean gain under the training retriever. The draws are
    paired, so what both share (the requests drawn) cancels in the interval of their ratio.
    """
    training = percentile_interval(means_C[0], draws_BC[:, 0])
    out = []
    for c, name in enumerate(retrievers):
        gain = percentile_interval(means_C[c], draws_BC[:, c])
        kept = None
        if training.low > 0:
            # Fewer than 2.5 % of the denominators are <= 0 here; they are left at their sign, far
            # in the tails.
            ratio_B = draws_BC[:, c] / np.where(
                draws_BC[:, 0] == 0, np.finfo(float).tiny, draws_BC[:, 0]
            )
            kept = percentile_interval(means_C[c] / means_C[0], ratio_B)
        out.append(Robustness(name, gain, kept))
    return out
