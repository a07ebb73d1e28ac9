"""Exact Shapley and Owen values: axioms by property tests, brute force over permutations, and
shapiq.
"""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ospo.credit import owen_values, shapley_values
from ospo.credit.owen import value_operator

FINITE = st.floats(-10, 10, allow_nan=False, width=32)


@st.composite
def games(draw, max_players=6):
    n = draw(st.integers(1, max_players))
    return n, np.array(draw(st.lists(FINITE, min_size=1 << n, max_size=1 << n)))


@st.composite
def games_with_unions(draw, max_players=6):
    n, values = draw(games(max_players))
    label = draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n))
    groups: dict[int, list[int]] = {}
    for player, name in enumerate(label):
        groups.setdefault(name, []).append(player)
    return n, values, list(groups.values())


def brute_force(values: np.ndarray, n: int, unions: list[list[int]] | None = None) -> np.ndarray:
    """Mean marginal contribution over all orders, or over those that keep each union together."""
    phi, count = np.zeros(n), 0
    for order in itertools.permutations(range(n)):
        if unions is not None:
            label = [next(k for k, union in enumerate(unions) if i in union) for i in order]
            if len(list(itertools.groupby(label))) != len(unions):
                continue
        mask = 0
        for i in order:
            phi[i] += values[mask | 1 << i] - values[mask]
            mask |= 1 << i
        count += 1
    return phi / count


def test_by_hand():
    # v(a)=1, v(b)=2, v(ab)=4, v(∅)=0: a = ½·1 + ½·(4−2) = 1.5, b = ½·2 + ½·(4−1) = 2.5
    assert shapley_values(np.array([0.0, 1, 2, 4])).tolist() == [1.5, 2.5]


def test_owen_by_hand():
    # Glove game: a holds a left glove, b and c a right one; unions {a}, {b, c}. Between unions: ½
    # and ½ (each needs the other); b and c are symmetric in theirs. Shapley without unions: 2/3,
    # 1/6, 1/6.
    values = np.array([float((s & 1) and (s & 6)) and 1.0 for s in range(8)])
    assert owen_values(values, [[0], [1, 2]]) == pytest.approx([0.5, 0.25, 0.25])
    assert shapley_values(values) == pytest.approx([2 / 3, 1 / 6, 1 / 6])


@given(games(5))
@settings(deadline=None, max_examples=40)
def test_shapley_is_the_mean_over_orders(game):
    n, values = game
    assert shapley_values(values) == pytest.approx(brute_force(values, n), abs=1e-9)


@given(games_with_unions(5))
@settings(deadline=None, max_examples=40)
def test_owen_is_the_mean_over_orders_that_keep_unions_together(game):
    n, values, unions = game
    assert owen_values(values, unions) == pytest.approx(brute_force(values, n, unions), abs=1e-9)


@given(games_with_unions())
@settings(deadline=None)
def test_efficiency(game):
    _, values, unions = game
    assert owen_values(values, unions).sum() == pytest.approx(values[-1] - values[0], abs=1e-9)
    assert shapley_values(values).sum() == pytest.approx(values[-1] - values[0], abs=1e-9)


@given(games_with_unions(), st.data())
@settings(deadline=None)
def test_null_player(game, data):
    n, values, unions = game
    i = data.draw(st.integers(0, n - 1))
    null = values[np.arange(1 << n) & ~(1 << i)]
    assert owen_values(null, unions)[i] == 0
    assert shapley_values(null)[i] == 0


@given(games(), st.data())
@settings(deadline=None)
def test_symmetry(game, data):
    n, values = game
    i, j = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    codes = np.arange(1 << n)
    swapped = codes & ~(1 << i | 1 << j) | (codes >> i & 1) << j | (codes >> j & 1) << i
    symmetric = values + values[swapped]
    phi = shapley_values(symmetric)
    assert phi[i] == pytest.approx(phi[j], abs=1e-9)
    # Within one union, and between unions of one player, the Owen value is symmetric too.
    others = [[p] for p in range(n) if p not in (i, j)]
    together = owen_values(symmetric, [[i, j], *others] if i != j else [[i], *others])
    assert together[i] == pytest.approx(together[j], abs=1e-9)


@given(games_with_unions(), st.data(), FINITE)
@settings(deadline=None)
def test_linearity(game, data, factor):
    n, values, unions = game
    other = np.array(data.draw(st.lists(FINITE, min_size=1 << n, max_size=1 << n)))
    for solve in (shapley_values, lambda v: owen_values(v, unions)):
        assert solve(values + factor * other) == pytest.approx(
            solve(values) + factor * solve(other), abs=1e-7
        )


@given(games_with_unions())
@settings(deadline=None)
def test_quotient_property(game):
    _, values, unions = game
    phi = owen_values(values, unions)
    bits = [sum(1 << i for i in union) for union in unions]
    quotient = np.array(
        [
            values[sum(bit for k, bit in enumerate(bits) if h >> k & 1)]
            for h in range(1 << len(unions))
        ]
    )
    assert [phi[union].sum() for union in unions] == pytest.approx(
        shapley_values(quotient), abs=1e-9
    )


@given(games())
@settings(deadline=None)
def test_singletons_and_one_union_are_shapley(game):
    n, values = game
    expected = shapley_values(values)
    assert owen_values(values, [[i] for i in range(n)]) == pytest.approx(expected, abs=1e-9)
    assert owen_values(values, [list(range(n))]) == pytest.approx(expected, abs=1e-9)


@given(games_with_unions())
@settings(deadline=None)
def test_operator_gives_the_same(game):
    n, values, unions = game
    assert value_operator(n) @ values == pytest.approx(shapley_values(values), abs=1e-9)
    parts = tuple(map(tuple, unions))
    assert value_operator(n, parts) @ values == pytest.approx(owen_values(values, unions), abs=1e-9)


def test_agrees_with_shapiq():
    shapiq = pytest.importorskip("shapiq")
    rng = np.random.default_rng(0)
    n = 6
    values = rng.normal(size=1 << n)

    def game(coalitions):
        return values[np.asarray(coalitions, dtype=int) @ (1 << np.arange(n))]

    computer = shapiq.ExactComputer(n_players=n, game=game)
    theirs = computer(index="SV", order=1).get_n_order_values(1)
    assert shapley_values(values) == pytest.approx(theirs, abs=1e-9)


def test_sixteen_players_well_under_a_second():
    values = np.random.default_rng(0).normal(size=1 << 16)
    started = time.process_time()
    shapley_values(values)
    owen_values(values, [range(6), range(6, 11), range(11, 16)])
    assert time.process_time() - started < 0.5


def test_no_players():
    assert shapley_values(np.array([3.0])).shape == (0,)
    assert owen_values(np.array([3.0]), []).shape == (0,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(3), "wrong length 3"),
        (np.zeros(0), "wrong length 0"),
        (np.zeros((2, 2)), r"wrong shape \(2, 2\)"),
        (np.array([0, 1, np.nan, 2]), "non-finite value nan of coalition 0b10"),
        (np.array([0, np.inf]), "non-finite value inf of coalition 0b1"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        shapley_values(values)
    with pytest.raises(ValueError, match=message):
        owen_values(values, [[0]])


@pytest.mark.parametrize(
    ("unions", "message"),
    [
        ([[0], [1, 2]], "player 2 does not exist"),
        ([[0, 1], [1]], "player 1 is named twice"),
        ([[0]], "player 1 is in no union"),
        ([[0, 1], []], "one union is empty"),
        ([[-1], [1]], "player -1 does not exist"),
    ],
)
def test_unions_that_are_no_partition_are_named(unions, message):
    with pytest.raises(ValueError, match=f"not a partition.*{message}"):
        owen_values(np.zeros(4), unions)
