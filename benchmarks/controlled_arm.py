"""One run of ``benchmarks.controlled``: the warm start of a seed with its estimators' correlations,
or one algorithm.
"""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.controlled_world import REQUESTS, TrueWorth, World
from benchmarks.jobs import save_result

ESTIMATORS = ("exact", "contiguous", "permutation", "stratified", "kernel", "bayes", "auto")


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
