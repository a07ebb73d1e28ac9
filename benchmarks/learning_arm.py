"""One arm of one seed of ``benchmarks.learning``: train it and keep what it answers to held-out
requests as it learns; then score those answers.

Training and scoring are apart so that scores need each retriever's index once, not once per arm,
and so that arms can be trained on a machine that lacks an index.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import progress
from benchmarks.jobs import load_result, save_result
from ospo.files import read_json

UNSEEN = ["bm25", "static", "lsa", "hybrid"]
TESTED = 250  # test requests scored at each look, unless --requests says otherwise
TUNED = 150  # validation requests, which choose between the rates of an arm
SCORES = "scores"


def arm_overrides(spec: str) -> tuple[str, list[str]]:
    """Algorithm and params overrides of an arm ``ALGORITHM[:KEY=VALUE,…]``."""
    algorithm, _, rest = spec.partition(":")
    return algorithm, [part for part in rest.split(",") if part]


def held_out(data: Any, tested: int = TESTED) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the first ``tested`` test requests (0: all), and of the validation requests."""
    rows = data.rows("test")
    return rows[: tested or len(rows)], data.rows("validation")[:TUNED]


def judged(config: Any) -> list[str]:
    """The retrievers that arms are scored under, the training one first."""
    return list(dict.fromkeys([config.retrievers.training, *UNSEEN]))


@dataclass
class Looks:
    """The search texts of a policy to ``requests`` while it is trained: one list per look.
    ``titles``: of a request's first hits, for policies that read them.
    """

    config: Any
    requests: Sequence[Any]
    titles: Callable[[Sequence[Any]], list[tuple[str, ...]]]
    steps: list[int] = field(default_factory=list)
    texts: list[list[str]] = field(default_factory=list)

    def __call__(self, step: int, model: Path) -> None:
        from ospo.evaluation.completions import rewrite
        from ospo.policy.kind import read_answer_kind

        rl = self.config.preset.rl
        answers = rewrite(
            model,
            self.requests,
            64,
            max_prompt_tokens=rl.max_prompt_tokens,
            max_new_tokens=rl.max_completion_tokens,
            cache=None,
            titles=self.titles,
        )
        kind = read_answer_kind(model)
        self.steps.append(step)
        self.texts.append(
            [kind.text(r.query, a) for r, a in zip(self.requests, answers, strict=True)]
        )


def run_arm(job: dict[str, Any]) -> None:
    """Train one arm (``spec`` "sft": the SFT policy) and keep its answers at each look."""
    import torch

    from ospo.config import load_config
    from ospo.data.dataset import load_prepared
    from ospo.evaluation.hits import FirstHits, with_hits
    from ospo.paths import PREPARED
    from ospo.retrieval import build_retriever
    from ospo.reward.measures import parse_measure
    from ospo.reward.search import SearchReward
    from ospo.training.run import TrainingRun
    from ospo.training.sft import train_sft

    torch.set_num_threads(1)
    algorithm, own = arm_overrides(job["spec"])
    config = load_config("params.yaml", [f"seed={job['seed']}", *job["overrides"], *own])
    out, sft = Path(job["out"]), Path(job["sft"])
    data = load_prepared(PREPARED / job["dataset"])
    retriever = build_retriever(config.retrievers.training, config, data)
    built = {config.retrievers.training: retriever}
    asked = [data.requests[row] for row in np.concatenate(held_out(data, job["tested"])).tolist()]
    looks = Looks(config, asked, FirstHits(config, data, built))
    data = with_hits(config, data, built)
    settings = config.reward
    k, measure = parse_measure(settings.measure, settings.k)
    reward = SearchReward(retriever, data, k, settings.cache_texts, settings.whole, measure)
    if algorithm != "sft":
        _run_algorithm(TrainingRun(config, data, out / "run", sft, reward), algorithm, job, looks)
        return
    if not sft.is_dir():
        train_sft(TrainingRun(config, data, sft.parent, reward=reward))
    looks(0, sft)
    _keep(out, looks, [], {})


def _run_algorithm(run: Any, algorithm: str, job: dict[str, Any], looks: Looks) -> None:
    from dataclasses import replace

    from ospo.training.train import train

    every = max(1, run.config.preset.rl.steps // job["looks"])
    logged: list[dict[str, float]] = []
    learning = replace(
        run,
        on_log=lambda step, metrics: (
            logged.append({"step": step} | metrics) if "seconds/step" in metrics else None
        ),
        callbacks=[snapshots(run, every, looks)],
    )
    # An arm that was cut off begins anew: its looks and seconds so far were in memory.
    shutil.rmtree(run.out, ignore_errors=True)
    train(learning, algorithm)
    # The run's result: its best policy by validation requests.
    looks(run.config.preset.rl.steps, run.out / "model")
    collapsed = (run.out / "collapse.json").is_file()
    best = run.out / "validation.json"
    facts = {"collapsed": collapsed, "validation": read_json(best) if best.is_file() else []}
    _keep(Path(job["out"]), looks, logged, facts)


def _keep(
    out: Path, looks: Looks, logged: Sequence[dict[str, float]], facts: dict[str, Any]
) -> None:
    arrays = {
        "steps": np.array(looks.steps),
        "seconds": np.array([row["seconds/step"] for row in logged]),
        "train": np.array([row.get("ndcg", np.nan) for row in logged]),
    }
    save_result(out, arrays, {"texts": looks.texts, "log": list(logged), **facts})


def snapshots(run: Any, every: int, look: Callable[[int, Path], None]) -> Any:
    """A callback that hands the policy of a training run, with what its answers are and when they
    are used, to ``look(step, directory)`` every ``every`` steps before the last.
    """
    from transformers import AutoTokenizer, TrainerCallback

    from ospo.policy.weights import save_policy

    config = run.config
    tokenizer = AutoTokenizer.from_pretrained(run.policy)

    class Snapshots(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % every == 0 and state.global_step < config.preset.rl.steps:
                network = kwargs["model"]
                was = network.training
                network.eval()
                shot = run.out / "shot"
                save_policy(
                    network,
                    tokenizer,
                    config.preset.model,
                    shot,
                    answer=config.answer,
                    guard=run.guard,
                    context=config.context,
                )
                look(state.global_step, shot)
                network.train(was)

    return Snapshots()


class Judge:
    """Scores texts for held-out requests under every retriever.

    ``groups_R``: whose each test request is; requests of one shopper are not independent.
    """

    def __init__(self, config: Any, data: Any, tested: int):
        from ospo.retrieval import build_retriever
        from ospo.reward.search import SearchReward

        test, validation = held_out(data, tested)
        self.data, self.tested = data, len(test)
        self.rows = np.concatenate([test, validation]).tolist()
        self.names = judged(config)
        self.rewards = [
            SearchReward(build_retriever(name, config, data), data, config.reward.k, 200_000)
            for name in self.names
        ]
        owners = [data.requests[row] for row in test.tolist()]
        keys = [request.customer_id or request.request_id for request in owners]
        self.groups_R = np.unique(keys, return_inverse=True)[1].astype(np.int64)

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """nDCG@k (retrievers, requests) of one text per held-out request."""
        return np.stack([reward(list(texts), self.rows) for reward in self.rewards])

    @property
    def requests(self) -> list[Any]:
        """The held-out requests, in the order of scores."""
        return [self.data.requests[row] for row in self.rows]

    def result(self, out: Path, first: Sequence[np.ndarray] = ()) -> dict[str, np.ndarray]:
        """A trained arm's arrays with ``values`` (looks, retrievers, test requests),
        ``validation`` (looks, retrievers, validation requests) and ``groups``, scored once and
        kept; ``first``: scores that come before its own looks.
        """
        if not (out / SCORES / "result.safetensors").is_file():
            progress(f"scoring {out}")
            tables = np.stack(
                [*first, *(self.scores(texts) for texts in read_json(out / "facts.json")["texts"])]
            )
            split = {"values": tables[..., : self.tested], "validation": tables[..., self.tested :]}
            save_result(out / SCORES, {**split, "groups": self.groups_R}, {"names": self.names})
        return load_result(out) | load_result(out / SCORES)
