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
another seed than the reported ones; (c) the steps each needs to GRPO's final reward. Intervals are
paired by seed (t distribution). Finished runs are kept under ``.benchmarks/controlled``. The last
line of stdout is one JSON object.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import finish, machine, progress
from benchmarks.jobs import job_key, load_result, run_jobs, save_result, serve

FOLDER = Path(".benchmarks/controlled")
CUES, SHOWN, DISTRACTORS, REQUESTS = 24, 7, 36, 4000
HARM, TEACHER, WORDS = 0.5, 0.8, (9, 13)
# Of one unit of utility, in units of the reward: about the slope of R where the warm start stands.
WORTH = 0.06
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
RATES = ("1.0e-4", "2.0e-4", "4.0e-4")
TUNING_SEEDS, TUNING_STEPS = (100,), 80
SMOOTH = 10  # steps
# What a finished run depends on beside its settings.
WORLD = (CUES, SHOWN, DISTRACTORS, HARM, TEACHER, *WORDS)
ESTIMATORS = ("exact", "contiguous", "permutation", "stratified", "kernel", "bayes", "auto")


def overrides(steps: int) -> list[str]:
    """Settings of the task; everything else is the `nano` preset's."""
    return [
        "policy=nano",
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


class World:
    """Cues, attributes and requests of one seed, and the truth about every text."""

    def __init__(self, seed: int):
        rng = np.random.default_rng([seed, 11])
        onset, vowel, coda = (
            "b d f g k l m n p r s t v z".split(),
            "a e i o u".split(),
            "l n r s t k".split(),
        )
        syllables = [a + b + c for a in onset for b in vowel for c in coda]
        words = [syllables[i] for i in rng.permutation(len(syllables))]
        self.cues, self.attributes = words[:CUES], words[CUES : 2 * CUES + DISTRACTORS]
        self.shown_RK = np.stack([rng.permutation(CUES)[:SHOWN] for _ in range(REQUESTS)])

    def query(self, row: int) -> str:
        """The request's words."""
        return " ".join(self.cues[i] for i in self.shown_RK[row])

    def truth(self, phrases: Sequence[str], row: int) -> np.ndarray:
        """(n,) what each phrase adds to the utility, in order: targets +1, anything else and
        repeats −HARM.
        """
        targets = {self.attributes[i] for i in self.shown_RK[row]}  # attribute i belongs to cue i
        values = []
        for phrase in phrases:
            word = phrase.strip(" ,.")
            values.append(1.0 if word in targets else -HARM)
            targets.discard(word)
        return np.array(values)

    def reward(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """(B,) rewards; a coalition's text joins its phrases by spaces, so words are what
        counts.
        """
        values = []
        for text, row in zip(texts, rows, strict=True):
            words = text.replace(",", " ").split()
            utility = float(self.truth(words, row).sum())
            values.append(1 / math.log2(2 + 60 * math.exp(-0.7 * utility)) if words else 0.0)
        return np.array(values)

    def teacher(self, row: int, rng: np.random.Generator) -> str:
        """A poor answer: 9 to 12 attributes, a target with probability TEACHER each, repeats left
        out.
        """
        words = [
            self.attributes[int(rng.choice(self.shown_RK[row]))]
            if rng.random() < TEACHER
            else self.attributes[int(rng.integers(len(self.attributes)))]
            for _ in range(int(rng.integers(*WORDS)))
        ]
        return ", ".join(dict.fromkeys(words))

    def data(self) -> Any:
        """The requests as prepared data; there is no catalogue to search."""
        import polars as pl

        from ospo.data.dataset import PreparedData, Request, Requests

        requests = [
            Request(f"r{row}", "train", self.query(row), "", (), "") for row in range(REQUESTS)
        ]
        nothing = np.zeros((REQUESTS, 1))
        return PreparedData(
            "controlled",
            FOLDER,
            pl.DataFrame(),
            Requests.of(requests),
            nothing.astype(int),
            nothing,
        )


class TrueWorth:
    """Stands in for the credit engine and knows the answer: each phrase's worth, which no estimator
    can better.
    """

    def __init__(self, engine: Any, world: World):
        self.engine, self.world = engine, world

    def credit(self, answers: Sequence[str], rows: Sequence[int], *others: Any) -> list[Any]:
        """The engine's credits with the truth in their place."""
        return [
            replace(
                found, phi_N=self.world.truth(found.segmentation.units, row) * WORTH, added_N=None
            )
            for found, row in zip(self.engine.credit(answers, rows, *others), rows, strict=True)
        ]


def train_warm_start(world: World, config: Any, out: Path) -> None:
    """The SFT policy of a seed, from scratch, on the poor teacher."""
    from ospo.policy.prompts import ANSWER_CLOSE, ANSWER_OPEN, prompt_messages
    from ospo.policy.weights import create_policy
    from ospo.training.run import TrainingRun
    from ospo.training.sft import IGNORE, prompt_ids, run_supervised

    sft, data = config.preset.sft, world.data()
    rng = np.random.default_rng([config.seed, 12])
    rows = rng.integers(0, REQUESTS, sft.steps * sft.batch_size).tolist()
    texts = [world.teacher(row, rng) for row in rows]
    vocabulary = [f"{word}, {word}" for word in world.attributes + world.cues] * 3
    network, tokenizer = create_policy(
        config.preset.model, [*vocabulary, *texts[:500]], config.seed
    )
    examples = []
    for row, text in zip(rows, texts, strict=True):
        prompt = prompt_ids(tokenizer, prompt_messages(data.requests[row]))
        answer = tokenizer(f"{ANSWER_OPEN}{text}{ANSWER_CLOSE}", add_special_tokens=False)[
            "input_ids"
        ]
        answer = [*answer, tokenizer.eos_token_id]
        examples.append({"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer})
    run_supervised(TrainingRun(config, data, out), sft, network, tokenizer, examples, "sft", ())


def run_one(job: dict[str, Any]) -> None:
    """The warm start of a seed with its estimators' correlations, or one algorithm's run."""
    import torch

    from ospo.config import load_config
    from ospo.training.rl import build_trainer, train_rl
    from ospo.training.run import TrainingRun

    torch.set_num_threads(1)
    algorithm, _, rest = job["spec"].partition(":")
    config = load_config(
        "params.yaml",
        [*job["overrides"], f"seed={job['seed']}", *(p for p in rest.split(",") if p)],
    )
    world, out, warm = World(job["seed"]), Path(job["out"]), Path(job["warm"])
    if algorithm == "sft":
        if not (warm / "model").is_dir():
            train_warm_start(world, config, warm)
        correlation = correlations(world, config, warm / "model")
        save_result(out, {"done": np.ones(1)}, {"correlation": correlation})
        return
    logged: list[dict[str, float]] = []
    run = TrainingRun(
        config,
        world.data(),
        out / "run",
        warm / "model",
        world.reward,
        on_log=lambda step, metrics: logged.append(metrics),
    )
    if algorithm == "truth":
        (out / "run").mkdir(parents=True, exist_ok=True)
        trainer = build_trainer(run, "ospo")
        trainer.engine = TrueWorth(trainer.engine, world)  # type: ignore[assignment]
        trainer.train()
    else:
        train_rl(run, algorithm)
    save_result(
        out,
        {
            "reward": np.array([row["reward"] for row in logged]),
            "seconds": np.array([row["seconds/step"] for row in logged]),
            "length": np.array([row["length"] for row in logged]),
        },
        {},
    )


def correlations(world: World, config: Any, model: Path, groups: int = 40) -> dict[str, float]:
    """Mean over completions of the Pearson correlation between credit and truth, for each estimator
    at the budget.

    GRPO gives every phrase of a completion the same, so within a completion it has none; its pooled
    correlation, of the sequence's advantage with the truth over all phrases, is given as ``grpo
    (pooled)`` beside ``auto (pooled)``.
    """
    from ospo.credit import CreditEngine
    from ospo.training.offline import groups as grouped
    from ospo.training.offline import sample_offline
    from ospo.training.run import TrainingRun

    small = [f"presets.nano.rl.steps={groups // 4}"]
    config = config.model_validate(_merged(config, small))
    completions = sample_offline(
        TrainingRun(config, world.data(), model.parent, model, world.reward)
    )
    answers, rows = [c.answer for c in completions], [c.row for c in completions]
    advantage = np.concatenate(
        [
            (lambda r: (r - r.mean()) / (r.std(ddof=1) + 1e-4))(np.array([c.reward for c in group]))
            for group in grouped(completions)
        ]
    )
    found: dict[str, float] = {}
    for name in ESTIMATORS:
        budget = 1 << 12 if name == "exact" else config.credit.budget
        engine = CreditEngine(
            world.reward,
            segments="delimiters",
            estimator=name,
            window=config.credit.window,
            budget=budget,
            max_segments=10,
        )
        single, pooled, truths, sequence = [], [], [], []
        for b, credit in enumerate(engine.credit(answers, rows)):
            truth = world.truth(credit.segmentation.units, rows[b])
            if len(truth) > 2 and np.ptp(truth) > 0 and np.ptp(credit.phi_N) > 0:
                single.append(float(np.corrcoef(credit.phi_N, truth)[0, 1]))
            pooled += credit.phi_N.tolist()
            truths += truth.tolist()
            sequence += [advantage[b]] * len(truth)
        found[name] = float(np.mean(single))
        if name == "auto":
            found["auto (pooled)"] = float(np.corrcoef(pooled, truths)[0, 1])
            found["grpo (pooled)"] = float(np.corrcoef(sequence, truths)[0, 1])
    return found


def _merged(config: Any, assignments: list[str]) -> dict[str, Any]:
    values = config.model_dump()
    for assignment in assignments:
        key, value = assignment.split("=")
        *parents, last = key.split(".")
        section = values
        for parent in parents:
            section = section[parent]
        section[last] = int(value)
    return values


def smooth(reward_T: np.ndarray) -> np.ndarray:
    """Mean of the last SMOOTH steps (fewer at the start), (T,)."""
    total = np.concatenate([[0.0], np.cumsum(reward_T)])
    ends = np.arange(1, len(reward_T) + 1)
    starts = np.maximum(0, ends - SMOOTH)
    return (total[ends] - total[starts]) / (ends - starts)


def interval(values_S: np.ndarray) -> list[float]:
    """95 % t interval of a mean over seeds."""
    from scipy import stats

    half = stats.t.ppf(0.975, len(values_S) - 1) * values_S.std(ddof=1) / math.sqrt(len(values_S))
    return [float(values_S.mean() - half), float(values_S.mean() + half)]


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
        comparison[name] = {
            "steps_to_grpo_final": steps if math.isfinite(steps) else None,
            "steps_by_seed": [step if math.isfinite(step) else None for step in each],
            "gain_at_half": float(curve[:, half - 1].mean() / grpo[:, half - 1].mean() - 1),
            "gain_ci": interval(gain_S),
            "final_minus_grpo": float((curve[:, -1] - grpo[:, -1]).mean()),
            "final_ci": interval(curve[:, -1] - grpo[:, -1]),
        }
    ours = comparison[OURS]
    steps_grpo = comparison["grpo"]["steps_to_grpo_final"]
    return {
        "steps_ratio": ours["steps_to_grpo_final"] / steps_grpo
        if ours["steps_to_grpo_final"]
        else None,
        "gain_at_half": ours["gain_at_half"],
        "gain_ci": ours["gain_ci"],
        "rewards": rewards,
        "comparison": comparison,
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
    names = [
        n
        for n in ALGORITHMS
        if not arguments.only or n in ("grpo", OURS, *arguments.only.split(","))
    ]
    seeds, steps = list(range(arguments.seeds)), arguments.steps
    rates: tuple[str, ...] = RATES
    if arguments.quick:
        names, seeds, steps, rates = ["grpo", "paper-prop", OURS], [0, 1], 60, RATES[1:2]
    warm_settings = overrides(1)  # the warm start does not depend on the steps that follow

    def job(
        seed: int, name: str, spec: str, extra: list[str], steps: int = steps
    ) -> dict[str, Any]:
        used = warm_settings if spec == "sft" else [*overrides(steps), *extra]
        folder = FOLDER / str(seed)
        out = folder / (name if spec == "sft" else f"{name}-{job_key(spec, used, WORLD)}")
        warm = str(folder / f"policy-{job_key(warm_settings, WORLD)}")
        return {"seed": seed, "spec": spec, "overrides": used, "out": str(out), "warm": warm}

    def rate(value: str) -> list[str]:
        return [f"presets.nano.rl.learning_rate={value}"]

    tuning = TUNING_SEEDS if len(rates) > 1 else ()
    warm = [
        job(seed, f"sft-{job_key(warm_settings, WORLD)}", "sft", []) for seed in (*seeds, *tuning)
    ]
    run_jobs("benchmarks.controlled", warm, arguments.jobs)
    chosen = dict.fromkeys(names, rates[0])
    if tuning:
        trials = {
            (name, value): [
                job(seed, name, ALGORITHMS[name], rate(value), TUNING_STEPS) for seed in tuning
            ]
            for name in names
            for value in rates
        }
        progress(f"learning rates: {len(trials)} settings on seeds {list(tuning)}")
        run_jobs(
            "benchmarks.controlled", [j for group in trials.values() for j in group], arguments.jobs
        )
        for name in names:
            area = {
                v: np.mean([load_result(Path(j["out"]))["reward"].mean() for j in trials[name, v]])
                for v in rates
            }
            chosen[name] = max(area, key=lambda value: area[value])
    runs = {
        name: [job(seed, name, ALGORITHMS[name], rate(chosen[name])) for seed in seeds]
        for name in names
    }
    run_jobs("benchmarks.controlled", [j for name in names for j in runs[name]], arguments.jobs)
    curves = {
        name: np.stack([smooth(load_result(Path(j["out"]))["reward"]) for j in group])
        for name, group in runs.items()
    }
    facts = [
        json.loads((Path(j["out"]) / "facts.json").read_text())["correlation"]
        for j in warm[: len(seeds)]
    ]
    credit = {name: float(np.mean([fact[name] for fact in facts])) for name in facts[0]}
    figures = report(curves) | {
        "credit_correlation": credit,
        "learning_rates": chosen,
        "seeds": seeds,
        "steps": steps,
    }
    figures |= {
        "seconds": round(time.perf_counter() - started, 1),
        "quick": arguments.quick,
        "machine": machine(),
    }
    finish(figures)


if __name__ == "__main__":
    main()
