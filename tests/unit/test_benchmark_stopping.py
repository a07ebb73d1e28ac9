"""The oracle of ``benchmarks.stopping``: the least that reaches an error, and no less."""

from itertools import product

import numpy as np
import pytest

from benchmarks.stopping import oracle


def test_an_oracle_spends_where_it_helps() -> None:
    budgets = (2, 4, 8)
    errors_BG = np.array([[1.0, 9.0, 0.0], [0.9, 1.0, 0.0], [0.8, 0.0, 0.0]])
    assert oracle(errors_BG, budgets, 10 / 3).tolist() == [2, 2, 2]
    assert oracle(errors_BG, budgets, 2 / 3).tolist() == [2, 4, 2]
    assert oracle(errors_BG, budgets, 0.8 / 3).tolist() == [8, 8, 2]


def test_no_choice_is_much_cheaper() -> None:
    """By all choices: what it spends is the least, or one game's step above it."""
    rng = np.random.default_rng(0)
    budgets = (4, 8, 12, 16)
    for _ in range(20):
        errors_BG = rng.exponential(size=(4, 4)) * np.array([8, 4, 2, 1])[:, None]
        target = float(errors_BG[2].mean())
        found = oracle(errors_BG, budgets, target)
        rows = [budgets.index(int(budget)) for budget in found]
        assert errors_BG[rows, range(4)].mean() <= target
        reached = [
            sum(budgets[row] for row in choice)
            for choice in product(range(4), repeat=4)
            if errors_BG[choice, range(4)].mean() <= target
        ]
        assert min(reached) <= found.sum() <= min(reached) + 12


def test_an_error_that_no_budget_reaches_is_refused() -> None:
    with pytest.raises(ValueError, match="no budgets reach"):
        oracle(np.ones((2, 3)), (2, 4), 0.5)
