"""One arm of one seed of ``benchmarks.learning``: train it, and score held-out answers as it
learns.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.jobs import save_result

UNSEEN = ["bm25", "static", "lsa", "hybrid"]
QUARTERS = 4
TESTED = 250  # test requests scored at each look
TUNED = 150  # validation requests, which choose between the rates of an arm


def arm_overrides(spec: str) -> tuple[str, list[str]]:
    """Algorithm and params overrides of an arm ``ALGORITHM[:KEY=VALUE,…]``."""
    algorithm, _, rest = spec.partition(":")
    return algorithm, [part for part in rest.split(",") if part]


class Judge:
    """Scores a policy's greedy answers to test and validation requests under every retriever.

    ``groups_R``: whose each test request is; requests of one shopper are not independent.
    """

    def __init__(self, config: Any, data: Any):
        from ospo.retrieval import build_retriever
        from ospo.reward.search import SearchReward

        test, validation = data.rows("test")[:TESTED], data.rows("validation")[:TUNED]
        self.config, self.data, self.tested = config, data, len(test)
        self.rows = np.concatenate([test, validation]).tolist()
        self.rewards = [
            SearchReward(build_retriever(name, config, data), data, config.reward.k, 200_000)
            for name in (config.retrievers.training, *UNSEEN)
        ]
        owners = [data.requests[row] for row in test.tolist()]
        keys = [request.customer_id or request.request_id for request in owners]
        self.groups_R = np.unique(keys, return_inverse=True)[1].astype(np.int64)

    def scores(self, model: Path | None) -> tuple[np.ndarray, list[str]]:
        """Scores (retrievers, test and validation requests), and the search texts; None: the raw
        query's.
        """
        from ospo.evaluation.completions import rewrite
        from ospo.policy.kind import read_answer_kind

        requests = [self.data.requests[row] for row in self.rows]
        rl = self.config.preset.rl
        if model is None:
            texts = [request.query for request in requests]
        else:
            answers = rewrite(
                model,
                requests,
                64,
                max_prompt_tokens=rl.max_prompt_tokens,
                max_new_tokens=rl.max_completion_tokens,
                cache=None,
            )
            kind = read_answer_kind(model)
            texts = [
                kind.text(r.query, answer) for r, answer in zip(requests, answers, strict=True)
            ]
        return np.stack([reward(texts, self.rows) for reward in self.rewards]), texts

    def split(self, tables: np.ndarray) -> dict[str, np.ndarray]:
        """``values`` of the test requests and ``validation`` of the others, (…, requests)."""
        return {"values": tables[..., : self.tested], "validation": tables[..., self.tested :]}


@dataclass
class Looks:
    """The scores of a policy while it is trained."""

    judge: Judge
    steps: list[int] = field(default_factory=list)
    tables: list[np.ndarray] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def __call__(self, step: int, model: Path) -> None:
        table, answers = self.judge.scores(model)
        self.steps.append(step)
        self.tables.append(table)
        self.answers = answers[:40]


def run_arm(dataset: str, seed: int, spec: str, overrides: list[str], out: Path, sft: Path) -> None:
    """Train one arm (``spec`` "sft": the SFT policy) and write its result: scores of test answers
    by time.
    """
    import torch

    from ospo.config import load_config
    from ospo.data.dataset import load_prepared
    from ospo.training.run import TrainingRun
    from ospo.training.sft import train_sft

    torch.set_num_threads(1)
    algorithm, own = arm_overrides(spec)
    config = load_config("params.yaml", [f"seed={seed}", *overrides, *own])
    data = load_prepared(Path("data/prepared") / dataset)
    judge = Judge(config, data)
    if algorithm != "sft":
        _run_algorithm(config, data, algorithm, sft, out, judge)
        return
    if not (sft / "model").is_dir():
        train_sft(TrainingRun(config, data, sft, reward=judge.rewards[0]))
    table, answers = judge.scores(sft / "model")
    both = np.stack([judge.scores(None)[0], table])
    save_result(out, {**judge.split(both), "groups": judge.groups_R}, {"answers": answers[:40]})


def _run_algorithm(
    config: Any, data: Any, algorithm: str, sft: Path, out: Path, judge: Judge
) -> None:
    from ospo.retrieval import build_retriever
    from ospo.reward.search import SearchReward
    from ospo.training.run import TrainingRun
    from ospo.training.train import train

    # Of its own: what the looks score must not be in the memo that training's seconds depend on.
    retriever = build_retriever(config.retrievers.training, config, data)
    reward = SearchReward(retriever, data, config.reward.k, config.reward.cache_texts)
    rl, run, looks = config.preset.rl, out / "run", Looks(judge)
    every = max(1, rl.steps // QUARTERS)
    logged: list[dict[str, float]] = []
    learning = TrainingRun(
        config,
        data,
        run,
        sft / "model",
        reward,
        on_log=lambda step, metrics: (
            logged.append({"step": step} | metrics) if "seconds/step" in metrics else None
        ),
        callbacks=[snapshots(sft / "model", config, every, run, looks)],
    )
    train(learning, algorithm)
    looks(rl.steps, run / "model")  # the run's result: its best policy by validation requests
    arrays = judge.split(np.stack(looks.tables)) | {
        "steps": np.array(looks.steps),
        "seconds": np.array([row["seconds/step"] for row in logged]),
        "train": np.array([row.get("ndcg", np.nan) for row in logged]),
    }
    collapsed = (run / "collapse.json").is_file()
    facts = {"answers": looks.answers, "logged": len(logged), "collapsed": collapsed}
    save_result(out, arrays, facts)


def snapshots(
    sft: Path, config: Any, every: int, run: Path, look: Callable[[int, Path], None]
) -> Any:
    """A callback that hands the policy, with what its answers are, to ``look(step, directory)``
    every ``every`` steps before the last.
    """
    from transformers import AutoTokenizer, TrainerCallback

    from ospo.policy.weights import save_policy

    tokenizer = AutoTokenizer.from_pretrained(sft)

    class Snapshots(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % every == 0 and state.global_step < config.preset.rl.steps:
                network = kwargs["model"]
                was = network.training
                network.eval()
                model, shot = config.preset.model, run / "shot"
                save_policy(
                    network, tokenizer, model, shot, answer=config.answer, context=config.context
                )
                look(state.global_step, shot)
                network.train(was)

    return Snapshots()
