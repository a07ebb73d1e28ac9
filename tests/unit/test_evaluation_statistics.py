"""Intervals, tests and corrections against known values and scipy."""

import itertools

import numpy as np
import pytest
from scipy import stats

from ospo.evaluation.statistics import (
    affordable,
    bootstrap_means,
    bootstrap_seed_means,
    cluster_sums,
    holm,
    percentile_interval,
    randomisation_test,
    robustness,
    seed_test,
)


def test_holm_known_values() -> None:
    # Worked example: sorted .01 .02 .03 .04 times 4 3 2 1, made monotone.
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03, 0.02])), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1.0, 1.0])
    np.testing.assert_allclose(
        holm(np.array([[0.01, np.nan], [0.04, 0.03]])), [[0.03, np.nan], [0.06, 0.06]]
    )


def test_randomisation_is_exact_on_few_requests() -> None:
    differences = np.array([0.3, 0.1, -0.2, 0.4, 0.2, 0.05])
    signs = np.array(list(itertools.product([1, -1], repeat=6)))
    expected = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12)
    assert randomisation_test(differences[:, None], 10_000, 0)[0] == expected
    reference = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        alternative="two-sided",
        n_resamples=np.inf,
    )
    assert expected == pytest.approx(reference.pvalue)


def test_randomisation_against_scipy_on_many_requests() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(0.05, 0.4, size=200)
    ours = randomisation_test(differences[:, None], 20_000, 1)[0]
    reference = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    )
    assert ours == pytest.approx(reference.pvalue, abs=0.01)


def test_randomisation_edges() -> None:
    values = np.column_stack([np.zeros(50), np.full(50, 0.1)])
    none, all_equal = randomisation_test(values, 999, 0)
    assert none == 1.0
    assert all_equal == 1 / 1000  # never 0


def test_randomisation_holds_its_level() -> None:
    rng = np.random.default_rng(3)
    p = randomisation_test(rng.normal(size=(60, 600)), 400, 0)
    assert 0.03 < np.mean(p <= 0.05) < 0.075


def test_bootstrap_interval_covers_and_matches_scipy() -> None:
    rng = np.random.default_rng(4)
    values = rng.exponential(size=300)
    interval = percentile_interval(values.mean(), bootstrap_means(values[:, None], 20_000, 0)[:, 0])
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    assert interval.low == pytest.approx(reference.low, abs=0.01)
    assert interval.high == pytest.approx(reference.high, abs=0.01)
    assert interval.low < interval.value < interval.high


def test_bootstrap_is_seeded_and_the_same_in_any_block_size(monkeypatch) -> None:
    values = np.random.default_rng(6).random((40, 3))
    first = bootstrap_means(values, 200, 7)
    assert np.array_equal(first, bootstrap_means(values, 200, 7))
    assert not np.array_equal(first, bootstrap_means(values, 200, 8))
    monkeypatch.setattr("ospo.evaluation.statistics._BLOCK", 40 * 13)
    np.testing.assert_allclose(bootstrap_means(values, 200, 7), first)


def test_requests_of_one_shopper_are_not_independent() -> None:
    # Every shopper appears four times with the same value: the honest interval is twice as wide.
    values = np.repeat(np.random.default_rng(8).normal(size=100), 4)[:, None]
    shoppers = np.repeat(np.arange(100), 4)

    def width(groups) -> float:
        low, high = np.quantile(bootstrap_means(values, 4000, 0, groups), [0.025, 0.975])
        return high - low

    assert width(shoppers) / width(None) == pytest.approx(2.0, rel=0.1)
    sums, sizes = cluster_sums(values, shoppers)
    np.testing.assert_allclose(sums[:, 0], 4 * values[::4, 0])
    assert set(sizes) == {4.0}


def test_robustness_share_and_interval() -> None:
    rng = np.random.default_rng(9)
    base = rng.normal(0.2, 0.3, size=2000)
    gains = np.column_stack([base, 0.5 * base, rng.normal(0.0, 0.3, size=2000)])
    training, half, nothing = robustness(
        gains.mean(axis=0), bootstrap_means(gains, 2000, 0), ["train", "half", "none"]
    )
    assert training.kept is not None
    assert training.kept.value == training.kept.low == training.kept.high == 1.0
    # Exactly proportional gains: the share is certain although the gains are not.
    assert half.kept is not None
    assert half.kept.low == pytest.approx(0.5)
    assert half.kept.high == pytest.approx(0.5)
    assert nothing.kept is not None
    assert nothing.kept.low < 0.15


def test_robustness_has_no_share_of_no_gain() -> None:
    rng = np.random.default_rng(10)
    gains = rng.normal(0.0, 0.3, size=(200, 2))
    entries = robustness(gains.mean(axis=0), bootstrap_means(gains, 1000, 0), ["train", "other"])
    assert all(entry.kept is None for entry in entries)


def test_fewer_resamples_of_very_many_requests() -> None:
    assert affordable(10_000, 400) == 10_000
    assert affordable(10_000, 100_000) == 2000
    assert affordable(10_000, 10**7) == 1000
    assert affordable(500, 10**7) == 500


@pytest.mark.parametrize("values", [np.zeros((0, 2)), np.full((3, 1), np.nan), np.zeros(3)])
def test_bad_values(values) -> None:
    with pytest.raises(ValueError, match=r"values|requests"):
        bootstrap_means(values, 100, 0)


def test_seed_test_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(3)
    differences = rng.normal(0.02, 0.03, size=(5, 4))
    np.testing.assert_allclose(seed_test(differences), stats.ttest_1samp(differences, 0).pvalue)
    assert np.isnan(seed_test(differences[:1])).all()
    alike = seed_test(np.array([[0.2, 0.0], [0.2, 0.0], [0.2, 0.0]]))
    assert alike == pytest.approx([0.0, 1.0], abs=1e-12)


def test_one_seed_is_the_plain_bootstrap() -> None:
    values = np.random.default_rng(0).random((1, 50, 3))
    np.testing.assert_array_equal(
        bootstrap_seed_means(values, 200, 7), bootstrap_means(values[0], 200, 7)
    )


def test_seeds_widen_the_interval_as_they_should() -> None:
    """Differences between training runs are the only variance here: the draws' variance is s**2 /
    S.
    """
    shifts = np.array([-0.3, 0.1, 0.0, 0.2, 0.4])
    values = np.repeat((0.5 + shifts)[:, None, None], 40, axis=1)
    draws = bootstrap_seed_means(values, 20_000, 0)[:, 0]
    assert draws.mean() == pytest.approx(0.5 + shifts.mean(), abs=0.005)
    assert draws.var() == pytest.approx(shifts.var(ddof=1) / 5, rel=0.05)


def test_intervals_over_seeds_and_requests_hold_what_they_promise() -> None:
    """Mean of new runs on new requests lies within the 95 % interval nearly as often; without
    seeds, far less often.
    """
    rng = np.random.default_rng(1)
    two_levels = plain = 0
    for trial in range(300):
        effects = rng.normal(0, 0.05, size=6)
        values = (
            effects[:, None, None]
            + rng.normal(0, 0.3, size=(60, 1))
            + rng.normal(0, 0.1, size=(6, 60, 1))
        )
        for draws, name in (
            (bootstrap_seed_means(values, 400, trial), "two"),
            (bootstrap_means(values.mean(axis=0), 400, trial), "one"),
        ):
            found = percentile_interval(float(values.mean()), draws[:, 0])
            if name == "two":
                two_levels += found.low <= 0 <= found.high
            else:
                plain += found.low <= 0 <= found.high
    assert two_levels / 300 > 0.9
    assert two_levels > plain
