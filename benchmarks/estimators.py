"""Error of credit estimators against exact Shapley and Owen values, per number of coalition
evaluations.

    python -m benchmarks.estimators            # about 10 minutes on two cores
    python -m benchmarks.estimators --quick    # under two minutes, fewer and smaller games

Ours (ospo.credit), shapiq's and shap's estimators on the same games at the same budget, the empty
and the full coalition counted. Progress goes to stderr; the last line of stdout is one JSON object:
mean squared errors by budget, number of segments and estimator, and the best of the others over our
default's at each budget.
"""

import argparse
import json
import os
import platform
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from benchmarks import start
from benchmarks.games import Game, make_games
from ospo.credit import get_estimator, owen_values, shapley_values
from ospo.credit.bayes import Surrogate

BUDGETS = (16, 32, 64)
OURS = ("contiguous", "permutation", "stratified", "kernel", "bayes", "surrogate")
SHAPIQ = (
    "KernelSHAP",
    "UnbiasedKernelSHAP",
    "PermutationSamplingSV",
    "StratifiedSamplingSV",
    "SVARM",
    "OwenSamplingSV",
)
Lookup = Callable[[np.ndarray], np.ndarray]


def _lookup(game: Game, counter: set[int]) -> Lookup:
    """v of coalition masks (K, n), noting which coalitions were asked for."""
    bits = 1 << np.arange(game.n)

    def value(masks: np.ndarray) -> np.ndarray:
        codes = np.atleast_2d(np.asarray(masks)).astype(bool) @ bits
        counter.update(codes.tolist())
        return game.values[codes]

    return value


def ours(
    name: str, game: Game, budget: int, seed: int, unions: tuple = ()
) -> tuple[np.ndarray, int]:
    """Our estimator's credit and the number of distinct coalitions it used."""
    estimator = get_estimator(name)
    masks = estimator.plan(game.n, unions, budget, np.random.default_rng(seed))
    codes = masks @ (1 << np.arange(game.n))
    values = game.values[codes]
    if isinstance(estimator, Surrogate):
        return estimator.fit_scores(
            game.n, unions, masks, values, game.scores[codes], game.measure
        ), len(set(codes))
    return estimator.fit(game.n, unions, masks, values), len(set(codes))


def by_shapiq(name: str, game: Game, budget: int, seed: int) -> tuple[np.ndarray, int]:
    """shapiq's estimator of the Shapley value."""
    import shapiq.approximator as approximators

    pairs = {"pairing_trick": True} if name == "KernelSHAP" else {}
    used: set[int] = set()
    approximator = getattr(approximators, name)(n=game.n, random_state=seed, **pairs)
    result = approximator.approximate(budget=budget, game=_lookup(game, used))
    return np.asarray(result.get_n_order_values(1)), len(used)


def by_shap(name: str, game: Game, budget: int, seed: int) -> tuple[np.ndarray, int]:
    """shap's estimator. Its permutation explainer raises ValueError below 2n + 1 evaluations."""
    import shap

    used: set[int] = set()
    value = _lookup(game, used)
    nothing, everything = np.zeros((1, game.n)), np.ones((1, game.n))
    np.random.seed(seed)  # noqa: NPY002 - shap draws from the global generator
    if name == "KernelExplainer":
        # nsamples does not count ∅ and N.
        phi = shap.KernelExplainer(value, nothing).shap_values(
            everything, nsamples=budget - 2, l1_reg=False, silent=True
        )
        return np.asarray(phi).reshape(-1), len(used)
    explainer = shap.explainers.Permutation(value, shap.maskers.Independent(nothing), seed=seed)
    return np.asarray(explainer(everything, max_evals=budget, silent=True).values).reshape(-1), len(
        used
    )


def contenders() -> dict[str, Callable[[Game, int, int], tuple[np.ndarray, int]]]:
    """Every estimator by its name in the table."""
    table: dict[str, Callable] = {}
    for name in OURS:
        table[name] = lambda game, budget, seed, name=name: ours(name, game, budget, seed)
    for name in SHAPIQ:
        table[f"shapiq.{name}"] = lambda game, budget, seed, name=name: by_shapiq(
            name, game, budget, seed
        )
    for name in ("KernelExplainer", "PermutationExplainer"):
        table[f"shap.{name}"] = lambda game, budget, seed, name=name: by_shap(
            name, game, budget, seed
        )
    return table


def _errors(games: list[Game], budget: int, seeds: int) -> tuple[dict, dict]:
    """Mean squared errors {estimator: {n: [...]}} against the Shapley and the Owen value."""
    shapley: dict = defaultdict(lambda: defaultdict(list))
    owen: dict = defaultdict(lambda: defaultdict(list))
    table = contenders()
    for game in games:
        if budget >= 1 << game.n:
            continue  # exact
        exact = shapley_values(game.values)
        exact_owen = owen_values(game.values, game.unions)
        for seed in range(seeds):
            for name, run in table.items():
                try:
                    phi, used = run(game, budget, seed)
                except ValueError as error:
                    # Too small a budget for that method (shap's permutations): the table has no
                    # figure there.
                    if "max_evals" not in str(error):
                        raise
                    continue
                if used > budget:
                    raise RuntimeError(f"{name} evaluated {used} coalitions, {budget} were allowed")
                shapley[name][game.n].append(float(np.mean((phi - exact) ** 2)))
            for name in OURS:
                if get_estimator(name).supports_unions:
                    phi, _ = ours(name, game, budget, seed, game.unions)
                    owen[name][game.n].append(float(np.mean((phi - exact_owen) ** 2)))
    return shapley, owen


def _summary(errors: dict) -> dict[str, dict[str, float]]:
    """{estimator: {n: MSE, "mean": mean over n of those with a figure for every n}}."""
    sizes = sorted({n for by_n in errors.values() for n in by_n})
    table = {}
    for name, by_n in errors.items():
        row = {str(n): float(np.mean(by_n[n])) for n in sizes if n in by_n}
        if len(row) == len(sizes):
            row["mean"] = float(np.mean([row[str(n)] for n in sizes]))
        table[name] = row
    return table


def main() -> None:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and smaller games")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts = {6: 4, 8: 4} if arguments.quick else {6: 16, 7: 16, 8: 16, 9: 12, 10: 8, 12: 3}
    seeds = 1 if arguments.quick else 3
    warnings.filterwarnings(
        "ignore", module="shap"
    )  # its estimators warn of every constant background
    started = time.perf_counter()
    games, source = make_games(counts, arguments.seed)
    result: dict = {
        "benchmark": "estimators",
        "command": "python -m benchmarks.estimators" + (" --quick" if arguments.quick else ""),
        "machine": f"{os.cpu_count()} x {platform.machine()}",
        "seed": arguments.seed,
        "source": source,
        "games": {str(n): sum(game.n == n for game in games) for n in counts},
        "variance": float(np.mean([np.mean(shapley_values(game.values) ** 2) for game in games])),
        "shapley_mse": {},
        "owen_mse": {},
        "ratio": {},
    }
    for budget in BUDGETS:
        print(
            f"budget {budget} at {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True
        )
        shapley, owen = map(_summary, _errors(games, budget, seeds))
        result["shapley_mse"][str(budget)], result["owen_mse"][str(budget)] = shapley, owen
        theirs = {
            name: row["mean"]
            for name, row in shapley.items()
            if "mean" in row and name not in ("bayes", "surrogate")
        }
        best = min(theirs, key=theirs.__getitem__)
        result["ratio"][str(budget)] = {
            "best_other": best,
            "over_bayes": theirs[best] / shapley["bayes"]["mean"],
            "over_surrogate": theirs[best] / shapley["surrogate"]["mean"],
        }
    result["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(result))


if __name__ == "__main__":
    start(main)
