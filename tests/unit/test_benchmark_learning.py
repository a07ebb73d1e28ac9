"""The learning benchmark's looks are at the policy that is trained, as it answers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, micro_config

from benchmarks import learning_arm
from benchmarks.jobs import RESULT, run_jobs, save_result
from benchmarks.learning import at_rates, plan
from benchmarks.learning_arm import Judge, snapshots
from ospo.config import load_config
from ospo.data.dataset import PreparedData
from ospo.evaluation import completions
from ospo.evaluation.completions import CachedPolicy
from ospo.policy.decoding import Decoding
from ospo.policy.guard import read_guard
from ospo.policy.kind import read_answer_kind, read_context
from ospo.policy.weights import create_policy, save_policy
from ospo.retrieval import build_retriever
from ospo.reward.search import SearchReward
from ospo.training.run import TrainingRun


@pytest.mark.parametrize(("answer", "guarded"), [("expand", True), ("rewrite", False)])
def test_a_snapshot_says_what_its_answers_are_and_when_they_are_used(
    answer: str, guarded: bool, esci_tiny: PreparedData, tmp_path: Path
) -> None:
    config = micro_config(
        f"answer={answer}",
        "context=2",
        "presets.nano.rl.steps=4",
        f"training.only_with_history={str(guarded).lower()}",
    )
    model = config.preset.model
    network, tokenizer = create_policy(model, ["red dress"], 0)
    sft = tmp_path / "sft"
    save_policy(network, tokenizer, model, sft, answer=config.answer, context=config.context)
    looks: list[tuple[int, str, int, bool]] = []

    def look(step: int, directory: Path) -> None:
        guard = read_guard(directory)
        kind, hits = read_answer_kind(directory).kind, read_context(directory)
        looks.append((step, kind, hits, guard is not None and guard.needs == "own"))

    run = TrainingRun(config, esci_tiny, tmp_path / "run", sft)
    callback: Any = snapshots(run, 2, look)
    for step in range(1, 5):
        callback.on_step_end(None, SimpleNamespace(global_step=step), None, model=network)
    assert looks == [(2, answer, 2, guarded)]


def test_looks_show_what_a_policy_reads(
    esci_tiny: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test requests too come with their first hits, and the reward is the one that is set."""
    changes = [
        "context=2", "retrievers.training=bm25", "retrievers.unseen=[static]",
        "reward.measure=RR@3", "presets.nano.rl.max_completion_tokens=4",
    ]  # fmt: skip
    config = micro_config(*changes)
    network, tokenizer = create_policy(config.preset.model, ["red dress"], 0)
    sft = tmp_path / "sft/model"
    save_policy(network, tokenizer, config.preset.model, sft, answer=config.answer, context=2)
    shown: list[int] = []
    rewards: list[Any] = []
    render = completions.render

    def seen(tokenizer: Any, request: Any, *rest: Any) -> Any:
        shown.append(len(request.hits[: rest[-1]]))
        return render(tokenizer, request, *rest)

    def arm(run: Any, algorithm: str, job: Any, looks: Any) -> None:
        rewards.append(run.reward)

    monkeypatch.setattr(completions, "render", seen)
    monkeypatch.setattr("ospo.data.dataset.load_prepared", lambda folder: esci_tiny)
    monkeypatch.setattr("ospo.config.load_config", lambda *_, **__: config)
    job = {"out": str(tmp_path / "sft/answers"), "sft": str(sft), "spec": "sft", "seed": 0,
           "overrides": [], "dataset": "esci", "tested": 3, "looks": 1}  # fmt: skip
    learning_arm.run_arm(job)
    assert set(shown) == {2}
    assert len(shown) > 3, "validation requests and test requests"
    monkeypatch.setattr(learning_arm, "_run_algorithm", arm)
    learning_arm.run_arm(job | {"spec": "ospo", "out": str(tmp_path / "arm")})
    query, row = [esci_tiny.requests[0].query], [0]
    [found] = SearchReward(build_retriever("bm25", config, esci_tiny), esci_tiny, 10, 0)(query, row)
    [first] = rewards
    assert first(query, row)[0] != found, "nDCG@10 is another reward"
    policy = CachedPolicy(sft, 8, 200, None)
    with pytest.raises(ValueError, match="reads first hits"):
        policy.complete([esci_tiny.requests[0]], Decoding(4))


def test_an_arm_that_was_cut_off_begins_anew(
    esci_tiny: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its looks and seconds so far were in memory: taken up, half of its record would be missing."""
    config = micro_config()
    network, tokenizer = create_policy(config.preset.model, ["red dress"], 0)
    save_policy(network, tokenizer, config.preset.model, tmp_path / "sft", answer=config.answer)
    run = TrainingRun(config, esci_tiny, tmp_path / "arm/run", tmp_path / "sft")
    (run.out / "checkpoints/checkpoint-2").mkdir(parents=True)
    left: list[bool] = []

    def train(learning: TrainingRun, _algorithm: str) -> None:
        left.append(learning.out.exists())
        raise KeyboardInterrupt

    monkeypatch.setattr("ospo.training.train.train", train)
    with pytest.raises(KeyboardInterrupt):
        learning_arm._run_algorithm(run, "grpo", {"looks": 1, "out": str(tmp_path)}, None)  # type: ignore[arg-type]
    assert left == [False]


def test_a_job_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text(
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from benchmarks.jobs import save_result, serve\n"
        "def run(job):\n"
        "    if job['bad']:\n"
        "        raise SystemExit('bad')\n"
        "    save_result(Path(job['out']), {'x': np.ones(1)}, {})\n"
        "serve(run)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    jobs = [{"out": str(tmp_path / str(n)), "bad": n == 0} for n in range(4)]
    with pytest.raises(SystemExit, match="0: failed, see"):
        run_jobs("worker", jobs, 1)
    assert [(tmp_path / str(n) / RESULT).is_file() for n in range(4)] == [False, True, True, True]


def test_answers_are_scored_once_and_by_the_texts_that_were_kept(
    esci_tiny: PreparedData, tmp_path: Path
) -> None:
    config = load_config(
        ROOT / "params.yaml", ["retrievers.training=static", "retrievers.unseen=[bm25]"]
    )
    judge = Judge(config, esci_tiny, 5)
    queries = [esci_tiny.requests[row].query for row in judge.rows]
    texts = [[*queries], ["nothing like it"] * len(queries)]
    save_result(tmp_path, {"steps": np.array([1, 2])}, {"texts": texts})
    found = judge.result(tmp_path, [judge.scores([request.query for request in judge.requests])])
    assert found["values"].shape == (3, 4, 5)  # static is no retriever of its own here
    np.testing.assert_array_equal(found["values"][0], found["values"][1])
    assert found["values"][2].mean() < found["values"][1].mean()
    save_result(tmp_path, {"steps": np.array([1, 2])}, {"texts": []})  # not read again
    np.testing.assert_array_equal(judge.result(tmp_path)["values"], found["values"])


def test_the_set_is_for_the_warm_start_too_and_each_set_has_its_own() -> None:
    def places(*overrides: str) -> list[tuple[str, str, list[str]]]:
        jobs = plan("hm", [0, 1], {"ospo": "ospo"}, list(overrides), ["steps=2"], 250, 4)
        return [(job["sft"], job["out"], job["overrides"]) for job in jobs]

    with_set, without = places("a=1"), places()
    assert [overrides for *_, overrides in with_set] == 2 * [["a=1"]] + 2 * [["a=1", "steps=2"]]
    assert len({sft for sft, *_ in [*with_set, *without]}) == 4
    assert len({out for _, out, _ in [*with_set, *without]}) == 8
    assert at_rates("x", "ospo:b=2", ["1.0e-4"], "smollm2-history") == {
        "x@1.0e-4": "ospo:b=2,presets.smollm2-history.rl.learning_rate=1.0e-4"
    }
    assert at_rates("x", "ospo", [], "nano") == {"x": "ospo"}
