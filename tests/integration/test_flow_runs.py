"""What a flow run shows in Prefect, asked of a real server: its name, its end, its summary."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.exceptions import ParameterTypeError
from prefect.testing.utilities import prefect_test_harness

from flows import pipeline as job
from flows import presented
from flows.common import flow_config
from flows.presented import carry_summary, install_one_line, links, run_name
from flows.train import sft, train_policy
from ospo import tracking
from ospo.config import Config, load_config
from ospo.errors import ConfigError
from ospo.files import write_json

PARAMS = str(ROOT / "params.yaml")
WRONG = "unknown preset 'huge'"


@pytest.fixture(scope="module", autouse=True)
def prefect() -> Iterator[None]:
    """A server of its own, with a database of its own."""
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def log() -> Iterator[list[logging.LogRecord]]:
    """What the engine logs about runs."""
    kept: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record)

    handler, logger = Keep(), logging.getLogger("prefect.flow_runs")
    logger.addHandler(handler)
    yield kept
    logger.removeHandler(handler)


def artifacts(flow_run_id: Any) -> list[Any]:
    """What a flow run itself carries, its subflows left out."""
    with get_client(sync_client=True) as client:
        return client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        )


def named(flow_run_id: Any) -> str:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(flow_run_id).name


def test_a_wrong_parameter_is_one_line(log: list[logging.LogRecord]) -> None:
    state = sft("esci", policy="huge", params=PARAMS, return_state=True)
    assert state.is_failed()
    assert state.message is not None
    assert state.message.count("\n") == 0
    assert "huge" in state.message
    assert "Fix:" in state.message
    with pytest.raises(ConfigError, match="huge"):  # for who calls the flow
        state.result()
    errors = [record for record in log if record.levelno >= logging.ERROR]
    assert [record.exc_info for record in errors if record.exc_info] == []
    said = [record.getMessage() for record in errors if "Fix:" in record.getMessage()]
    assert said
    assert all("\n" not in line and "Traceback" not in line for line in said)
    assert named(state.state_details.flow_run_id) == "esci-sft-huge"


def test_the_engines_second_record_is_dropped_and_a_defects_traceback_stays() -> None:
    def record(error: Exception, words: str) -> logging.LogRecord:
        info = (type(error), error, None)
        return logging.LogRecord("x", logging.ERROR, "f", 1, words, (), info)

    first = record(ConfigError("p", "a", "b", "c"), "Encountered exception during execution: %r")
    assert presented.OneLine().filter(first)
    assert (first.getMessage(), first.exc_info) == ("p: a: b. Fix: c", None)
    wrong_type = record(ParameterTypeError("two\nlines"), "Encountered exception")
    assert presented.OneLine().filter(wrong_type)
    assert wrong_type.getMessage() == "two lines"
    again = record(
        ConfigError("p", "a", "b", "c"), "Engine execution exited with unexpected exception"
    )
    assert not presented.OneLine().filter(again)
    defect = record(ZeroDivisionError("x"), "Engine execution exited with unexpected exception")
    assert presented.OneLine().filter(defect)
    assert defect.exc_info is not None
    for _ in range(2):
        install_one_line()
    for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
        kinds = [type(known) for known in logging.getLogger(name).filters]
        assert kinds.count(presented.OneLine) == 1


def test_a_policy_is_chosen_from_a_list() -> None:
    properties = train_policy.parameters.model_dump()["properties"]
    policy = properties["policy"]
    assert policy["enum"] == ["params.yaml", *sorted(load_config(PARAMS).presets)]
    assert (policy["type"], policy["default"]) == ("string", "params.yaml")
    assert flow_config(PARAMS, None, "params.yaml").policy == load_config(PARAMS).policy
    assert properties["dataset"]["enum"] == load_config(PARAMS).datasets


@pytest.mark.parametrize(
    ("given", "step", "name"),
    [
        ({"dataset": "hm", "algorithm": "grpo"}, "", "hm-grpo-nano"),
        ({"dataset": "hm", "policy": "params.yaml"}, "sft", "hm-sft-nano"),
        ({"dataset": "hm", "algorithm": "ospo", "policy": "paper"}, "", "hm-ospo-paper"),
        ({"dataset": "hm", "overrides": ["policy=paper"]}, "pipeline", "hm-pipeline-paper"),
        ({"dataset": "hm", "params": "missing.yaml"}, "sft", "hm-sft"),
        ({"datasets": ["esci", "hm"]}, "pipeline", "esci-hm-pipeline-nano"),
        ({"datasets": None}, "champion-check", "all-champion-check-nano"),
    ],
)
def test_runs_are_named_by_data_set_algorithm_and_preset(
    given: dict[str, Any], step: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Runtime:
        parameters = {"params": PARAMS} | given

    monkeypatch.setattr(presented, "flow_run", Runtime)
    assert run_name(step)() == name


def test_the_scheduled_run_itself_carries_the_summary(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps stand in for themselves here; tests/slow/test_operations.py runs them."""
    evaluation = Path("runs/hm/evaluation")
    write_json(evaluation / "step.json", {"run_id": "evaluation-id"})
    (evaluation / "summary.md").write_text("| raw query | 0.5 |")
    made = {"name": "ospo-rewriter-hm", "version": 2, "aliases": ["champion"], "decision": "better"}
    made |= {"policy": "grpo", "same_as_sft": True}

    @contextmanager
    def ready(_dataset: str) -> Iterator[None]:
        yield

    @flow(name="evaluate")
    def evaluated(dataset: str, **options: Any) -> dict[str, Any]:
        config = flow_config(PARAMS, None)
        carry_summary(
            "evaluation", dataset, "of the subflow", {}, config, evaluation / "report.html"
        )
        return {"test": {}}

    monkeypatch.setattr(job, "dataset_ready", ready)
    for name in ("sft", "train_policy"):
        monkeypatch.setattr(job, name, lambda *_, **__: "")
    monkeypatch.setattr(job, "evaluate", evaluated)
    monkeypatch.setattr(job, "register", lambda *_: made)
    state = job.pipeline_dataset("hm", params=PARAMS, return_state=True)
    assert state.is_completed(), state.message
    run_id = state.state_details.flow_run_id
    [found] = artifacts(run_id)
    assert found.key == "pipeline-hm"
    assert "**ospo-rewriter-hm version 2** (@champion) is grpo (the SFT policy as it" in found.data
    assert "found no better one): better" in found.data
    assert "| raw query | 0.5 |" in found.data
    assert "MLflow run of the evaluation: `evaluation-id`" in found.data
    assert "`runs/hm/evaluation/report.html`" in found.data
    assert named(run_id) == "hm-pipeline-nano"


def test_links_lead_to_mlflow_and_to_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def places(_config: Config, runs: dict[str, str]) -> dict[str, tracking.Place]:
        return {what: tracking.Place("7", run_id) for what, run_id in runs.items()}

    config = load_config(PARAMS)
    secret = "http://me:s3cret@mlflow.example:5000/"  # pragma: allowlist secret
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    monkeypatch.setattr(tracking, "places", places)
    line = links(config, {"pipeline": "a", "evaluation": "b"}, Path("runs/hm/report.html"))
    base = "http://mlflow.example:5000/#/experiments/7/runs"
    assert f"[MLflow run of the pipeline]({base}/a?{tracking.TRAINING_VIEW})" in line
    assert f"[MLflow run of the evaluation]({base}/b?{tracking.TRAINING_VIEW})" in line
    assert f"[Report]({base}/b/artifacts/report.html?{tracking.TRAINING_VIEW})" in line
    assert "s3cret" not in line
