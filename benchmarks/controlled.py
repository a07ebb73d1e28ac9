"""Controlled generation: a search-like task in which the worth of every phrase is known.

    python -m benchmarks.controlled [--quick] [--seeds 5] [--steps 160] [--jobs 2]

The world: 24 cues, each standing for a hidden attribute; a request shows 7 cues, and its hidden
targets are their 7 attributes. 36 further attributes are distractors. A text's utility is +1 for
each target that it names and −0.5 for every other word, repeats included; the reward is shaped like
nDCG:

    R = 1 / log2(2 + 60 · exp(−0.7 · utility)),  0 for an empty text

So the truth about a phrase (+1 or −0.5) is known, while the learner sees one number a text. The
policy is the `nano` preset, warm-started on a teacher that names a target with probability 0.8,
else any attribute.

Reported: (a) the correlation of each estimator's credit with the truth, over completions of the
warm-started policy, beside GRPO's advantage; (b) the reward by step of every algorithm, and of ours
with the truth for credit, each at the learning rate with the highest mean reward in shorter runs on
another seed than the reported ones; (c) the steps each needs to GRPO's final reward. Intervals and
p-values are those of differences paired by seed (``ospo.evaluation.statistics``: the t
distribution over seeds). Finished runs are kept under ``.benchmarks/controlled``. The last
line of stdout is one JSON object.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import finish, machine, progress, start
from benchmarks.controlled_arm import run_one
from benchmarks.controlled_world import FOLDER, WORLD
from benchmarks.jobs import job_key, load_result, run_jobs, serve
from ospo.evaluation.statistics import seed_interval, seed_test

ALGORITHMS = {
    "grpo": "grpo",
    "to-go": "ospo:credit.redistribution=to-go",
    "paper-prop": "ospo:credit.redistribution=paper-prop",
    "paper-rank": "ospo:credit.redistribution=paper-rank",
    "grpo_lambda": "grpo_lambda",
    "dr_grpo": "dr_grpo",
    "shapley_tokens": "shapley_tokens",
    "additive": "ospo:credit.redistribution=additive",
    "signed-prop": "ospo:credit.redistribution=signed-prop",
    "hybrid": "ospo:credit.redistribution=hybrid,credit.alpha=0.7",
    "dapo": "dapo",
    # Ours with every phrase's true worth in place of its credit: what perfect credit would give.
    "truth": "truth",
}
OURS = "to-go"
RATES: tuple[str, ...] = ("1.0e-4", "2.0e-4", "4.0e-4")
TUNING_SEEDS, TUNING_STEPS = (100,), 80
SMOOTH = 10  # steps


def overrides(steps: int) -> list[str]:
    """Settings of the task; everything else is the `nano` preset's."""
    return [
        "policy=nano",
        "answer=rewrite",
        "credit.segments=delimiters",
        "presets.nano.model.vocab_size=600",
        "presets.nano.sft.steps=250",
        "presets.nano.sft.learning_rate=1.0e-3",
        f"presets.nano.rl.steps={steps}",
        "presets.nano.rl.prompts_per_step=4",
        "presets.nano.rl.max_completion_tokens=40",
        "presets.nano.rl.repeat_cost=0.0",
        "presets.nano.rl.word_cost=0.0",
        f"presets.nano.rl.checkpoint_every={steps}",
        "presets.nano.rl.collapse_reward=0.0",
        "presets.nano.rl.collapse_entropy=0.0",
    ]


def smooth(reward_T: np.ndarray) -> np.ndarray:
    """Mean of the last SMOOTH steps (fewer at the start), (T,)."""
    total = np.concatenate([[0.0], np.cumsum(reward_T)])
    ends = np.arange(1, len(reward_T) + 1)
    starts = np.maximum(0, ends - SMOOTH)
    return (total[ends] - total[starts]) / (ends - starts)


def against(apart_S: np.ndarray) -> dict[str, Any]:
    """95 % interval of a mean difference over seeds, and the p-value of the paired t-test."""
    interval = seed_interval(apart_S)
    return {"ci": [interval.low, interval.high], "p": float(seed_test(apart_S[:, None])[0])}


def steps_to(curve_T: np.ndarray, goal: float) -> float:
    """First step whose smoothed reward reaches ``goal``; infinity where none does."""
    reached = np.flatnonzero(curve_T >= goal)
    return float(reached[0] + 1) if len(reached) else math.inf


def report(curves: dict[str, np.ndarray]) -> dict[str, Any]:
    """Figures from smoothed curves (seeds, steps) of each algorithm."""
    grpo = curves["grpo"]
    goal, half = grpo[:, -1].mean(), grpo.shape[1] // 2
    rewards: dict[str, Any] = {}
    comparison: dict[str, Any] = {}
    for name, curve in curves.items():
        marks = {str(t): float(curve[:, t - 1].mean()) for t in (half // 2, half, grpo.shape[1])}
        rewards[name] = marks | {"mean": float(curve.mean())}
        steps = steps_to(curve.mean(axis=0), goal)
        gain_S = curve[:, half - 1] / grpo[:, half - 1] - 1
        each = [steps_to(curve[s], grpo[s, -1]) for s in range(len(grpo))]
        final_S = curve[:, -1] - grpo[:, -1]
        gain, final = against(gain_S), against(final_S)
        comparison[name] = {
            "steps_to_grpo_final": steps if math.isfinite(steps) else None,
            "steps_by_seed": [step if math.isfinite(step) else None for step in each],
            "gain_at_half": float(curve[:, half - 1].mean() / grpo[:, half - 1].mean() - 1),
            "gain_ci": gain["ci"],
            "gain_p": gain["p"],
            "final_minus_grpo": float(final_S.mean()),
            "final_ci": final["ci"],
            "final_p": final["p"],
        }
    ours = comparison[OURS]
    steps_grpo = comparison["grpo"]["steps_to_grpo_final"]
    return {
        "steps_ratio": ours["steps_to_grpo_final"] / steps_grpo
        if ours["steps_to_grpo_final"]
        else None,
        "gain_at_half": ours["gain_at_half"],
        "gain_ci": ours["gain_ci"],
        "gain_p": ours["gain_p"],
        "rewards": rewards,
        "comparison": comparison,
    }


def job(seed: int, name: str, spec: str, extra: list[str], steps: int) -> dict[str, Any]:
    """One run; ``spec`` "sft": the warm start, which does not depend on the steps that follow."""
    warm = overrides(1)
    used = warm if spec == "sft" else [*overrides(steps), *extra]
    folder = FOLDER / str(seed)
    place = name if spec == "sft" else f"{name}-{job_key(spec, used, WORLD)}"
    return {
        "seed": seed,
        "spec": spec,
        "overrides": used,
        "out": str(folder / place),
        "warm": str(folder / f"policy-{job_key(warm, WORLD)}"),
    }


def rate(value: str) -> list[str]:
    """The setting of a learning rate."""
    return [f"presets.nano.rl.learning_rate={value}"]


def choose_rates(names: list[str], rates: tuple[str, ...], jobs: int) -> dict[str, str]:
    """The rate of each algorithm with the highest mean reward in shorter runs on the tuning
    seeds.
    """
    trials = {
        (name, value): [
            job(seed, name, ALGORITHMS[name], rate(value), TUNING_STEPS) for seed in TUNING_SEEDS
        ]
        for name in names
        for value in rates
    }
    progress(f"learning rates: {len(trials)} settings on seeds {list(TUNING_SEEDS)}")
    run_jobs("benchmarks.controlled", [j for group in trials.values() for j in group], jobs)
    chosen = {}
    for name in names:
        area = {
            v: np.mean([load_result(Path(j["out"]))["reward"].mean() for j in trials[name, v]])
            for v in rates
        }
        chosen[name] = max(area, key=lambda value: area[value])
    return chosen


def run(
    names: list[str], seeds: list[int], steps: int, rates: tuple[str, ...], jobs: int
) -> dict[str, Any]:
    """Run what is missing; returns the figures."""
    tuning = TUNING_SEEDS if len(rates) > 1 else ()
    name = f"sft-{job_key(overrides(1), WORLD)}"
    warm = [job(seed, name, "sft", [], steps) for seed in (*seeds, *tuning)]
    run_jobs("benchmarks.controlled", warm, jobs)
    chosen = choose_rates(names, rates, jobs) if tuning else dict.fromkeys(names, rates[0])
    runs = {
        name: [job(seed, name, ALGORITHMS[name], rate(chosen[name]), steps) for seed in seeds]
        for name in names
    }
    run_jobs("benchmarks.controlled", [j for name in names for j in runs[name]], jobs)
    curves = {
        name: np.stack([smooth(load_result(Path(j["out"]))["reward"]) for j in group])
        for name, group in runs.items()
    }
    facts = [
        json.loads((Path(j["out"]) / "facts.json").read_text())["correlation"]
        for j in warm[: len(seeds)]
    ]
    credit = {name: float(np.mean([fact[name] for fact in facts])) for name in facts[0]}
    return report(curves) | {
        "credit_correlation": credit,
        "learning_rates": chosen,
        "seeds": seeds,
        "steps": steps,
    }


def main() -> None:
    """Run what is missing, then print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="GRPO, OSPO-Prop and ours, 2 seeds, 60 steps, one rate"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument(
        "--only", default="", help="comma-separated algorithms, grpo always among them"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(run_one)
        return
    started = time.perf_counter()
    wanted = {"grpo", OURS, *arguments.only.split(",")}
    names = [name for name in ALGORITHMS if not arguments.only or name in wanted]
    seeds, steps, rates = list(range(arguments.seeds)), arguments.steps, RATES
    if arguments.quick:
        names, seeds, steps, rates = ["grpo", "paper-prop", OURS], [0, 1], 60, RATES[1:2]
    figures = run(names, seeds, steps, rates, arguments.jobs) | {
        "seconds": round(time.perf_counter() - started, 1),
        "quick": arguments.quick,
        "machine": machine(),
    }
    finish(figures)


if __name__ == "__main__":
    start(main)
