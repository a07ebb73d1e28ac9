"""What a stopping rule for credit could save at best: each game's evaluations chosen by an oracle.

    python -m benchmarks.stopping            # about two minutes
    python -m benchmarks.stopping --quick    # fewer and smaller games

A stopping rule ends a completion's evaluations when its credit is known well enough. The oracle
knows the error of every game at every budget and spends where an evaluation lowers it most, until
the mean squared error over all games is that of ``--budget`` evaluations for each. No rule, which
must guess those errors, needs fewer than it does. Games: ``benchmarks.games``, estimator
``surrogate``. Progress goes to stderr; the last line of stdout is one JSON object.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np

from benchmarks import finish, machine, progress, start
from benchmarks.estimators import ours
from benchmarks.games import make_games
from ospo.credit import shapley_values

BUDGETS = (4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48)


def oracle(errors_BG: np.ndarray, budgets: Sequence[int], target: float) -> np.ndarray:
    """The budget of each game (G,) with which the mean of their errors is at most ``target`` and
    the sum of the budgets least, up to the last game.

    errors_BG: squared error of each of G games at each of B ascending ``budgets``. Spends where an
    evaluation lowers the error most. Raises ValueError where no budgets reach the target.
    """
    if errors_BG.min(axis=0).mean() > target:
        raise ValueError(f"no budgets reach a mean squared error of {target:g}")
    cost_B = np.array(budgets, dtype=np.float64)
    games = np.arange(errors_BG.shape[1])
    at_G = np.zeros(len(games), dtype=np.int64)
    while errors_BG[at_G, games].mean() > target:
        step_BG = cost_B[:, None] - cost_B[at_G]
        saved_BG = errors_BG[at_G, games] - errors_BG
        rate_BG = np.full(errors_BG.shape, -np.inf)
        np.divide(saved_BG, step_BG, out=rate_BG, where=step_BG > 0)
        budget, game = np.unravel_index(rate_BG.argmax(), rate_BG.shape)
        at_G[game] = budget
    return cost_B[at_G]


def main() -> None:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and smaller games")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=32, choices=BUDGETS)
    arguments = parser.parse_args()
    started = time.perf_counter()
    counts = {6: 3, 7: 3} if arguments.quick else {7: 6, 8: 6, 9: 6, 10: 4}
    games, source = make_games(counts, arguments.seed)
    errors_BG = np.zeros((len(BUDGETS), 2 * len(games)))
    for number, game in enumerate(games):
        exact = shapley_values(game.values)
        for draw in (0, 1):
            for row, budget in enumerate(BUDGETS):
                phi, _ = ours("surrogate", game, budget, draw)
                errors_BG[row, 2 * number + draw] = np.mean((phi - exact) ** 2)
    progress(f"{len(games)} games at {len(BUDGETS)} budgets")
    mean_B = errors_BG.mean(axis=1)
    target = float(mean_B[BUDGETS.index(arguments.budget)])
    chosen_G = oracle(errors_BG, BUDGETS, target)
    finish(
        {
            "benchmark": "stopping",
            "seed": arguments.seed,
            "source": source,
            "games": len(games),
            "mse": dict(zip(map(str, BUDGETS), map(float, mean_B), strict=True)),
            "budget": arguments.budget,
            "oracle": float(chosen_G.mean()),
            "saved": 1 - float(chosen_G.mean()) / arguments.budget,
            "seconds": round(time.perf_counter() - started, 1),
            "machine": machine(),
        }
    )


if __name__ == "__main__":
    start(main)
