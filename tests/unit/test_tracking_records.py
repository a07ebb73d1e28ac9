"""What is recorded and what is sent: units, limits, order, and nothing twice."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from mlflow import MlflowClient

from ospo import tracking
from ospo.config import Config, load_config
from ospo.tracking import runs, session, store
from ospo.tracking.database import prepare_database
from ospo.tracking.delivery import KEY_TAG, deliver
from ospo.tracking.facts import git_dirty
from ospo.tracking.journal import Journal
from ospo.tracking.runs import dataset_digest, flatten, now_ms


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    config = load_config(ROOT / "params.yaml", [f"tracking.uri={uri}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking.setup(config)
    return config


@pytest.fixture
def client(config: Config, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return MlflowClient(config.tracking.uri)


def creation(config: Config, key: str, **others: Any) -> dict[str, Any]:
    """The event that begins a run."""
    event = {"op": "create", "time": now_ms(), "name": "x", "artifact_location": None}
    event |= {"experiment": config.tracking.experiment, "parent": None, "tags": {KEY_TAG: key}}
    return event | others


def test_times_are_milliseconds() -> None:
    assert abs(now_ms() / 1000 - time.time()) < 60


def test_parameters_are_flat_and_as_long_as_mlflow_takes() -> None:
    found = flatten({"rl": {"steps": 3, "kinds": ["a"]}, "long": "x" * 7000, "none": None})
    assert found == {
        "rl.steps": "3",
        "rl.kinds": '["a"]',
        "long": "x" * runs.MAX_PARAM,
        "none": "null",
    }


def test_a_digest_does_not_depend_on_the_order_of_the_outputs() -> None:
    outputs = {"b/pools.parquet": "1" * 32, "a/qrels.parquet": "2" * 32}
    digest = dataset_digest(outputs)
    assert digest == dataset_digest(dict(reversed(outputs.items())))
    assert digest != dataset_digest(outputs | {"b/pools.parquet": "3" * 32})
    assert len(digest) == 32
    assert dataset_digest("4" * 32 + ".dir") == "4" * 32 + ".dir"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_cannot_hold_are_null_in_tables(value: float) -> None:
    assert runs._plain([1.5, value, (value, "a")]) == [1.5, None, [None, "a"]]


def test_an_exit_without_an_error_is_a_finish() -> None:
    assert [session._status(error) for error in (SystemExit(), SystemExit(0))] == ["FINISHED"] * 2
    assert [session._status(error) for error in (SystemExit(2), KeyboardInterrupt())] == [
        "KILLED"
    ] * 2
    assert session._status(ValueError()) == "FAILED"


def test_what_is_a_server_and_where_its_files_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ARTIFACTS_DESTINATION", raising=False)
    assert [
        store.is_server(uri)
        for uri in ("http://127.0.0.1:5000", "https://mlflow.example", "sqlite:///a.db")
    ] == [True, True, False]
    here = (tmp_path / "mlartifacts").as_uri()
    database = f"sqlite:///{tmp_path}/mlflow.db"
    for uri in (database, "http://127.0.0.1:5000", "http://localhost:5000"):
        assert store.artifact_location(uri, tmp_path) == here, uri
    assert store.artifact_location("https://mlflow.example", tmp_path) is None
    monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", "s3://bucket")
    assert store.artifact_location("http://127.0.0.1:5000", tmp_path) is None
    assert store.artifact_location(database, tmp_path) == here


def test_a_database_that_another_process_made_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.db import upgrade

    file = tmp_path / "mlflow.db"
    monkeypatch.setattr(upgrade, "callback", lambda uri: file.write_text("of the other process"))
    prepare_database(f"sqlite:///{file}")
    assert file.read_text() == "of the other process"
    assert list(tmp_path.iterdir()) == [file]


def test_more_metrics_than_mlflow_takes_at_once(
    config: Config, client: MlflowClient, tmp_path: Path
) -> None:
    with tracking.run(config, "x", kind="sft", directory=tmp_path) as run:
        run.log_metrics(1, {f"m{n}": float(n) for n in range(1500)})
        run.set_tags({f"t{n}": n for n in range(150)})
    found = client.get_run(run.id).data
    assert {key: value for key, value in found.metrics.items() if key.startswith("m")} == {
        f"m{n}": float(n) for n in range(1500)
    }
    assert all(found.tags[f"t{n}"] == str(n) for n in range(150))


def test_a_run_whose_answer_was_lost_is_not_made_again(
    config: Config, client: MlflowClient, tmp_path: Path
) -> None:
    """The server had made the run when the connection broke: the next try finds it by its key."""
    experiment = client.get_experiment_by_name(config.tracking.experiment).experiment_id
    made = client.create_run(experiment, tags={KEY_TAG: "k1"})
    journal = Journal(tmp_path, "k1")
    journal.append(creation(config, "k1"))
    journal.set_state(attempted=True)
    assert deliver(client, journal) == []
    assert journal.run_id == made.info.run_id
    assert len(client.search_runs([experiment], f"tags.`{KEY_TAG}` = 'k1'")) == 1
    journal.close()


def test_what_was_sent_is_not_sent_again(
    config: Config, client: MlflowClient, tmp_path: Path
) -> None:
    """Events are noted as delivered with the batch that they went in."""
    journal = Journal(tmp_path, "k2")
    journal.append(creation(config, "k2"))
    for step in range(5):
        journal.append({"op": "batch", "time": 1, "metrics": [["m", 1.0, now_ms(), step]]})
    sent: list[int] = []

    class Counting(MlflowClient):
        def log_batch(self, run_id: str, *args: Any, **kwargs: Any) -> Any:
            sent.append(len(kwargs.get("metrics", ())))
            return super().log_batch(run_id, *args, **kwargs)

    assert deliver(Counting(config.tracking.uri), journal) == []
    assert sent == [5]
    assert journal.pending() == []
    assert json.loads(journal.state_file.read_text())["delivered"] == len(journal) == 6
    journal.close()


def test_a_journal_stays_until_all_of_it_was_sent(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "k3")
    for op in ("create", "batch", "end"):
        journal.append({"op": op})
    journal.set_state(run_id="r", delivered=2)
    journal.close()
    again = Journal(tmp_path, "k3")
    assert again.pending() == [{"op": "end"}]
    again.set_state(delivered=3)
    again.close()
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_run_move_with_its_folder(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "old", "k4")
    inside, outside = tmp_path / "old" / "report.html", tmp_path / "other.html"
    places = [journal.place(file) for file in (inside, outside)]
    journal.append({"op": "files"})
    journal.close()
    (tmp_path / "old").rename(tmp_path / "new")
    moved = Journal(tmp_path / "new", "k4")
    assert [moved.find(place) for place in places] == [tmp_path / "new" / "report.html", outside]
    moved.close()


def test_a_deleted_experiment_takes_no_run(
    config: Config, client: MlflowClient, tmp_path: Path
) -> None:
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(store.TrackingError, match=r"'gone' was deleted in MLflow\. Fix:"):
        store.experiment_id(client, "gone", None)


def test_a_tree_is_dirty_where_tracked_files_differ(tmp_path: Path) -> None:
    assert git_dirty(tmp_path) == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    (tmp_path / "a").write_text("1")
    for arguments in (["init", "-q"], ["add", "a"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    assert git_dirty(tmp_path) == "false"
    (tmp_path / "b").write_text("not tracked")
    assert git_dirty(tmp_path) == "false"
    (tmp_path / "a").write_text("2")
    assert git_dirty(tmp_path) == "true"
