"""Learning on the shops: what each algorithm makes of the same SFT policy, on held-out requests,
over several seeds.

    python -m benchmarks.learning --dataset NAME [--seeds 0,1,2,3,4] [--steps N] [--set KEY=VALUE]
    [--arm NAME=ALGORITHM[:KEY=VALUE,…]] [--rates 1.5e-4,3.0e-4] [--no-scores]

For each seed: the SFT policy, then each arm from that policy with the same prompts, reward and
budget. Held-out greedy answers are scored (nDCG@10 within pools) under the training retriever and
unseen ones after each quarter of the steps, the last look being at the run's result (its best
policy by validation requests), so arms are compared after equal steps and after equal wall-clock
time (seconds of training alone). Test requests are never trained on. Each online arm
runs at every rate of ``--rates``; the one that ends best on validation requests, on average over
the seeds, is reported; without ``--rates`` at its preset's. ``--set`` is for the SFT policy and
every arm: an SFT policy per seed and set. Each arm of each seed is kept under
``.benchmarks/learning`` and not run again; `--jobs` processes run side by side, one thread each.
``--no-scores`` trains and stops: the same command scores later, on another machine too. The last
line of stdout is one JSON object; ``--plot FILE`` writes the learning curves.

Statistics are the evaluation's (``ospo.evaluation.statistics``): differences are paired by request,
intervals draw training seeds and shoppers (10,000 times), p is the larger one of the randomisation
test over shoppers and the t-test over seeds, Holm-corrected over all comparisons reported.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import finish, machine, prepared, start
from benchmarks.jobs import job_key, run_jobs, serve
from benchmarks.learning_arm import TESTED, Judge, arm_overrides, run_arm
from benchmarks.learning_figures import best_on_validation, plot, summary
from ospo.config import load_config
from ospo.data.dataset import load_prepared
from ospo.paths import PREPARED
from ospo.policy.rules import RAW, RULES

FOLDER = Path(".benchmarks/learning")
ARMS = {
    "rft": "rft",
    "dpo": "dpo",
    "grpo": "grpo",
    "grpo-lambda": "grpo_lambda",
    "ospo-prop": "ospo:credit.redistribution=paper-prop",
    "ospo-rank": "ospo:credit.redistribution=paper-rank",
    "ospo": "ospo",
}


def at_rates(name: str, spec: str, rates: list[str], policy: str) -> dict[str, str]:
    """Specs of an arm by name, one per learning rate; rft and dpo, which have rates of their own,
    stay as they are.
    """
    algorithm, own = arm_overrides(spec)
    if algorithm in ("rft", "dpo") or not rates:
        return {name: spec}
    key = f"presets.{policy}.rl.learning_rate"
    return {f"{name}@{rate}": f"{algorithm}:{','.join([*own, f'{key}={rate}'])}" for rate in rates}


def plan(
    dataset: str,
    seeds: list[int],
    specs: dict[str, str],
    overrides: list[str],
    steps: list[str],
    tested: int,
    looks: int,
) -> list[dict[str, Any]]:
    """One job per seed and arm of ``specs``, the SFT policy's among them. ``overrides`` are for
    all, ``steps`` for the arms alone; ``tested`` test requests are answered at each of ``looks``
    looks.
    """
    jobs = []
    for name, spec in {"sft": "sft", **specs}.items():
        for seed in seeds:
            folder = FOLDER / dataset / str(seed) / f"sft-{job_key(overrides, tested)}"
            own = [] if name == "sft" else steps
            place = f"{name}-{job_key(spec, own, looks)}" if name != "sft" else "answers"
            jobs.append(
                {
                    "dataset": dataset,
                    "seed": seed,
                    "name": name,
                    "spec": spec,
                    "overrides": [*overrides, *own],
                    "tested": tested,
                    "looks": looks,
                    "out": str(folder / place),
                    "sft": str(folder / "policy/model"),
                }
            )
    return jobs


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing; returns the figures."""
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    arms = dict(arm.split("=", 1) for arm in arguments.arm) or ARMS
    config = load_config("params.yaml", arguments.set)
    rates = [rate for rate in arguments.rates.split(",") if rate]
    tried = {name: at_rates(name, spec, rates, config.policy) for name, spec in arms.items()}
    parts = ("rl", "rft", "dpo") if arguments.steps else ()
    steps = [f"presets.{config.policy}.{part}.steps={arguments.steps}" for part in parts]
    specs = {name: spec for each in tried.values() for name, spec in each.items()}
    jobs = plan(
        arguments.dataset,
        seeds,
        specs,
        arguments.set,
        steps,
        arguments.requests,
        arguments.looks,
    )
    # SFT policies first: the arms begin from them.
    run_jobs("benchmarks.learning", [job for job in jobs if job["name"] == "sft"], arguments.jobs)
    run_jobs("benchmarks.learning", [job for job in jobs if job["name"] != "sft"], arguments.jobs)
    facts = {"dataset": arguments.dataset, "seeds": seeds, "arms": arms, "set": arguments.set}
    if arguments.no_scores:
        return facts
    judge = Judge(config, load_prepared(PREPARED / arguments.dataset), arguments.requests)
    raw = judge.scores([request.query for request in judge.requests])
    rule = None
    if arguments.rule:
        rule = judge.scores([RULES[arguments.rule].text(request) for request in judge.requests])
        rule = rule[:, : judge.tested]
    kept = {
        (job["seed"], job["name"]): judge.result(
            Path(job["out"]), [raw] if job["name"] == "sft" else []
        )
        for job in jobs
    }
    chosen = {arm: best_on_validation(kept, seeds, list(each)) for arm, each in tried.items()}
    results = {
        (seed, arm): kept[seed, name]
        for arm, name in {"sft": "sft", **chosen}.items()
        for seed in seeds
    }
    validation = {
        name: float(np.mean([kept[seed, name]["validation"][-1, 0].mean() for seed in seeds]))
        for name in specs
    }
    return (
        facts
        | {"steps": arguments.steps, "chosen": chosen, "validation": validation}
        | summary(results, seeds, list(arms), arguments.ours, rule, judge.names)
    )


def main() -> None:
    """Run what is missing, then print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="esci", help="a prepared data set of params.yaml")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument(
        "--steps", type=int, default=0, help="steps of every arm; default: the preset's"
    )
    parser.add_argument(
        "--arm", action="append", default=[], metavar="NAME=SPEC", help="not the default arms"
    )
    parser.add_argument(
        "--rates",
        default="",
        help="learning rates each online arm is tried at, such as 1.5e-4,3.0e-4; default: its "
        "preset's",
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=TESTED,
        help="test requests answered at each look; 0: all; default: %(default)s",
    )
    parser.add_argument(
        "--looks", type=int, default=4, help="looks at the held-out requests; default: %(default)s"
    )
    parser.add_argument("--no-scores", action="store_true", help="train, and score another time")
    parser.add_argument(
        "--rule",
        choices=[name for name, rule in RULES.items() if rule.standalone and name != RAW],
        help="also compare ours with this rule",
    )
    parser.add_argument("--ours", default="ospo", help="the arm that is compared with grpo")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of all policies",
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="SVG of the learning curves")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(run_arm)
        return
    started = time.perf_counter()
    prepared(arguments.dataset)
    figures = run(arguments)
    if arguments.plot and not arguments.no_scores:
        plot(figures, arguments.dataset, arguments.plot)
    finish(figures | {"seconds": round(time.perf_counter() - started, 1), "machine": machine()})


if __name__ == "__main__":
    start(main)
