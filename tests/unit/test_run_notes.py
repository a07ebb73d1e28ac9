"""What MLflow runs say of themselves: the end of a training run, and links from a pipeline's run."""

import json
import math
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import micro_config

from ospo import steps, tracking
from ospo.files import write_json
from ospo.steps.notes import FINAL, last_tenth, log_training, pipeline_note
from ospo.tracking import SilentRun


class Noted(SilentRun):
    """A run that keeps what it is told."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.step, self.note = -1, ""

    def log_metrics(self, step: int, metrics: object) -> None:
        self.step = step
        self.metrics |= dict(metrics)  # type: ignore[call-overload]

    def describe(self, text: str) -> None:
        self.note = text


def test_the_last_tenth_and_not_the_last_batch() -> None:
    log = [{"step": n, "reward": 0.0 if n < 18 else 0.1 * (n - 17)} for n in range(20)]
    log[5]["rare"] = 2.0
    log[19]["loss"] = math.nan
    found = last_tenth(log)
    assert found["reward"].value == pytest.approx(0.15)  # 0.1 and 0.2
    half = 1.96 * math.sqrt(2 * 0.05**2) / math.sqrt(2)
    assert found["reward"].low == pytest.approx(0.15 - half)
    assert found["reward"].high == pytest.approx(0.15 + half)
    assert found["rare"].value == 2.0
    assert "step" not in found
    assert "loss" not in found
    assert last_tenth([]) == {}


def test_a_training_run_ends_with_what_a_reader_compares(tmp_path: Path) -> None:
    rows = [{"step": n, "ndcg": n / 100, "loss": 1.0} for n in range(1, 31)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Noted()
    log_training(run, tmp_path, "**OSPO** on **hm**.")
    assert run.metrics == {f"{FINAL}ndcg": pytest.approx(0.29), f"{FINAL}loss": 1.0}
    assert run.step == 30
    assert run.note.startswith("**OSPO** on **hm**.\n\nAt the end of training (mean of the last 3 ")
    assert "of 30 steps), nDCG@10 of sampled answers to training requests: **0.290**" in run.note
    assert "95 % interval 0.279 to 0.301" in run.note
    assert (tmp_path / "note.md").read_text() == run.note


def test_the_comparison_is_one_click_from_the_pipelines_run(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = micro_config()
    for name in ("sft", "grpo", "ospo", "evaluation"):
        write_json(Path(f"runs/hm/{name}/step.json"), {"run_id": f"id-{name}"})
    Path("runs/hm/evaluation/summary.md").write_text("What it found.")
    tracking.setup(config)
    note = pipeline_note(config, "hm", "The whole job.")
    assert note.startswith("The whole job.\n\n[Compare GRPO and OSPO](#/compare-")
    assert note.endswith("\n\nWhat it found.")
    link = note.partition("](")[2].partition(")")[0]
    assert (
        unquote(link)
        == '#/compare-runs?runs=["id-grpo", "id-ospo"]&experiments=["1"]&workflowType=machine_learning'
    )
    assert "[Report](#/experiments/1/runs/id-evaluation/artifacts/report.html?workflow" in note
    assert "[OSPO](#/experiments/1/runs/id-ospo?workflowType=machine_learning)" in note
    write_json(Path("runs/hm/grpo/step.json"), {"run_id": "pending:abc"})
    assert "Compare" not in pipeline_note(config, "hm", "The whole job.")


def test_a_pipelines_run_describes_itself(workspace: Path) -> None:
    config = micro_config()
    with steps.pipeline_run(config, "hm") as run_id:
        for name in ("grpo", "ospo"):
            write_json(Path(f"runs/hm/{name}/step.json"), {"run_id": f"id-{name}"})
    client = tracking.store.MlflowClient(tracking.tracking_uri(config, workspace))
    note = client.get_run(run_id).data.tags["mlflow.note.content"]
    assert note.startswith(
        "**The whole job (SFT, GRPO and OSPO, evaluation, registration)** on **hm**"
    )
    assert "[Compare GRPO and OSPO](" in note
