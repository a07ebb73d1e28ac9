"""Tracking: what a run records, how it ends, and that nothing is lost while a real MLflow server is
away.
"""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import psutil
import pytest
from conftest import ROOT
from mlflow import MlflowClient
from waiting import wait_for

from ospo import tracking
from ospo.config import Config, load_config
from ospo.tracking import runs
from ospo.tracking.journal import Journal, JournalBusy


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return load_config(ROOT / "params.yaml", [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"])


@pytest.fixture
def client(config: Config) -> MlflowClient:
    tracking.setup(config)
    return MlflowClient(config.tracking.uri)


def test_relative_database_and_artifacts_lie_under_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = load_config(ROOT / "params.yaml")
    uri = tracking.setup(config, root=tmp_path)
    assert (tmp_path / "mlflow.db").exists()
    experiment = MlflowClient(uri).get_experiment_by_name(config.tracking.experiment)
    assert experiment.artifact_location == (tmp_path / "mlartifacts").as_uri()


def test_environment_overrides_params(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert tracking.setup(config) == f"sqlite:///{tmp_path}/other.db"


def test_a_run_records_everything(config: Config, client: MlflowClient, tmp_path: Path) -> None:
    data = tmp_path / "esci"
    data.mkdir()
    (data / "stats.json").write_text('{"kept": {"requests": 3}}')
    (tmp_path / "report.txt").write_text("hello")
    with (
        tracking.run(config, "pipeline", kind="pipeline", directory=tmp_path / "p") as parent,
        tracking.run(
            config,
            "sft-esci",
            kind="sft",
            directory=tmp_path / "s",
            details=tracking.RunDetails(
                parent_id=parent.id,
                params={"sft": {"steps": 3, "learning_rate": 1e-3}, "seed": 0},
                tags={"ospo.dataset": "esci", "empty": ""},
                data_md5={"hm": "1" * 32},
                prefect_flow_run_id="flow-1",
                note="what it is",
            ),
        ) as run,
    ):
        for step in range(1500):
            run.log_metrics(step, {"loss": 1 / (step + 1)})
        run.log_metrics(0, {"odd": float("nan")})
        run.log_table(
            "tables/completions.json",
            pl.DataFrame({"text": ["a", "b"], "reward": [0.5, float("nan")]}),
        )
        run.log_dict("config.json", {"a": 1})
        run.log_artifact(tmp_path / "report.txt", "report")
        run.log_dataset("esci", data, {"data/prepared/esci/pools.parquet": "0" * 32})
    found = client.get_run(run.id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"sft.steps": "3", "sft.learning_rate": "0.001", "seed": "0"}
    tags = found.data.tags
    assert tags["mlflow.parentRunId"] == parent.id
    assert tags["ospo.kind"] == "sft"
    assert tags["prefect.flow_run_id"] == "flow-1"
    assert tags["git.dirty"] in ("true", "false")
    assert len(tags["git.commit"]) == 40
    assert tags["mlflow.note.content"] == "what it is"
    own = {key for key in tags if not key.startswith("mlflow.")}
    assert own <= {"git.commit", "git.dirty", "ospo.kind", "ospo.dataset", "ospo.run_key",
                   "prefect.flow_run_id"}  # fmt: skip
    facts = json.loads(Path(client.download_artifacts(run.id, "facts.json")).read_text())
    assert facts["packages"]["torch"].startswith("2.")
    assert int(facts["machine"]["cpus"]) >= 1
    assert facts["data"] == {"esci": {"pools.parquet": "0" * 32}, "hm": {"all": "1" * 32}}
    assert "empty" not in tags
    assert "mlflow.user" not in tags
    history = client.get_metric_history(run.id, "loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
        (step, 1 / (step + 1)) for step in range(1500)
    ]
    [dataset] = found.inputs.dataset_inputs
    assert (dataset.dataset.name, json.loads(dataset.dataset.profile)) == (
        "esci",
        {"kept": {"requests": 3}},
    )
    table = json.loads(
        Path(client.download_artifacts(run.id, "tables/completions.json")).read_text()
    )
    assert table == {"columns": ["text", "reward"], "data": [["a", 0.5], ["b", None]]}
    assert Path(client.download_artifacts(run.id, "report/report.txt")).read_text() == "hello"
    assert not (tmp_path / "s" / ".tracking").exists(), (
        "everything was delivered, so nothing must wait"
    )


def test_an_experiment_is_one_of_model_training(config: Config, client: MlflowClient) -> None:
    """Marked so when it is made, and where MLflow guessed otherwise; a person's choice stays."""

    def kind() -> str | None:
        return client.get_experiment_by_name(name).tags.get("mlflow.experimentKind")

    name = config.tracking.experiment
    assert kind() == "custom_model_development"
    experiment = client.get_experiment_by_name(name).experiment_id
    for before, after in (
        ("genai_development_inferred", "custom_model_development"),
        ("no_inferred_type", "custom_model_development"),
        ("genai_development", "genai_development"),
    ):
        client.set_experiment_tag(experiment, "mlflow.experimentKind", before)
        tracking.setup(config)
        assert kind() == after
    client.delete_experiment_tag(experiment, "mlflow.experimentKind")
    tracking.setup(config)
    assert kind() == "custom_model_development"


def test_what_is_known_later_is_added_to_an_ended_run(
    config: Config, client: MlflowClient, tmp_path: Path
) -> None:
    with tracking.run(config, "x", kind="sft", directory=tmp_path / "x") as run:
        run.describe("at first")
    before = client.get_run(run.id).info
    tracking.amend(config, run.id, directory=tmp_path / "y", metrics={"a": 0.5}, note="later")
    found = client.get_run(run.id)
    assert (found.data.metrics["a"], found.data.tags["mlflow.note.content"]) == (0.5, "later")
    assert (found.info.status, found.info.end_time) == ("FINISHED", before.end_time)
    assert not (tmp_path / "y" / ".tracking").exists()


def test_what_is_added_while_the_server_is_away_is_sent_later(
    config: Config, tmp_path: Path, server: "Server", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even to a run that was never in MLflow before; it does not end KILLED for it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    with tracking.run(config, "x", kind="sft", directory=tmp_path / "x") as run:
        pass
    assert run.id.startswith("pending:")
    tracking.amend(config, run.id, directory=tmp_path / "y", metrics={"a": 0.5}, note="later")
    assert (tmp_path / "y" / ".tracking").exists()
    server.start()
    tracking.sync(config, tmp_path)
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(config.tracking.experiment).experiment_id
    [found] = client.search_runs([experiment])
    assert (found.data.metrics["a"], found.data.tags["mlflow.note.content"]) == (0.5, "later")
    assert found.info.status == "FINISHED"
    assert not list(tmp_path.rglob(".tracking"))


def test_the_machine_is_sampled_while_a_run_lasts(
    config: Config, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 0.05)
    monkeypatch.setattr(runs, "SYSTEM_SECONDS", 0.1)
    with tracking.run(config, "x", kind="sft", directory=tmp_path) as run:
        time.sleep(0.5)
    metrics = client.get_run(run.id).data.metrics
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    assert 0 < metrics["system/system_memory_usage_percentage"] <= 100
    megabytes = psutil.Process().memory_info().rss / 1e6
    assert metrics["system/process_memory_usage_megabytes"] == pytest.approx(megabytes, rel=0.5)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (tracking.Terminated, "KILLED")],
)
def test_status_says_how_it_ended(
    config: Config, client: MlflowClient, tmp_path: Path, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), tracking.run(config, "x", kind="sft", directory=tmp_path) as run:
        raise error(143)
    assert client.get_run(run.id).info.status == status


def test_resuming_goes_on_in_the_same_run(
    config: Config, client: MlflowClient, tmp_path: Path
) -> None:
    with tracking.run(config, "x", kind="sft", directory=tmp_path) as first:
        first.log_metrics(1, {"loss": 1.0})
    with tracking.run(config, "x", kind="sft", directory=tmp_path, run_id=first.id) as second:
        assert second.flush()
        assert client.get_run(second.id).info.status == "RUNNING"
        second.log_metrics(2, {"loss": 0.5})
    assert second.id == first.id
    assert client.get_run(second.id).info.status == "FINISHED"
    assert sorted(m.step for m in client.get_metric_history(second.id, "loss")) == [1, 2]


def test_resuming_a_run_that_does_not_exist_is_one_clear_line(
    config: Config, tmp_path: Path
) -> None:
    with (
        pytest.raises(tracking.TrackingError, match="refused the run"),
        tracking.run(config, "x", kind="sft", directory=tmp_path, run_id="0" * 32),
    ):
        pass


def test_one_refused_record_takes_nothing_with_it(
    config: Config, client: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracking.run(config, "x", kind="sft", directory=tmp_path) as run:
        run.log_metrics(1, {"good": 1.0})
        run.log_metrics(1, {"a name: that MLflow refuses!": 1.0})
        run.log_metrics(2, {"good": 2.0})
    assert sorted(m.step for m in client.get_metric_history(run.id, "good")) == [1, 2]
    assert "refused" in caplog.text


def test_unusable_database_is_one_clear_line(config: Config, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with (
        pytest.raises(tracking.TrackingError, match="Fix:"),
        tracking.run(config, "x", kind="sft", directory=tmp_path),
    ):
        pass


KILLED_WHILE_MAKING = """
import os, signal, sys
import sqlalchemy
from ospo import tracking
from ospo.config import load_config

seen = []

@sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "before_cursor_execute")
def count(connection, cursor, statement, *rest):
    seen.append(statement)
    if len(seen) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

tracking.setup(load_config({params!r}, ["tracking.uri=" + {uri!r}]))
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("statement", [5, 60, 200, 400])
def test_killed_while_mlflow_makes_its_database(
    config: Config, tmp_path: Path, statement: int
) -> None:
    """The same command again works, and nothing half-made is left."""
    script = KILLED_WHILE_MAKING.format(params=str(ROOT / "params.yaml"), uri=config.tracking.uri)
    command = [sys.executable, "-c", script, str(statement)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [path.name for path in tmp_path.iterdir()]
    assert left
    assert "mlflow.db" not in left
    with tracking.run(config, "x", kind="sft", directory=tmp_path / "step") as run:
        pass
    assert MlflowClient(config.tracking.uri).get_run(run.id).info.status == "FINISHED"
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", "step", "mlartifacts"}


def test_two_processes_make_one_database(config: Config, tmp_path: Path) -> None:
    script = f"""
from ospo import tracking
from ospo.config import load_config
tracking.setup(load_config({str(ROOT / "params.yaml")!r}, ["tracking.uri={config.tracking.uri}"]))
"""
    both = [subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=240) for process in both] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_mlflow_prints_no_address_of_a_run(
    config: Config, tmp_path: Path, server: "Server", capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It would print user and password with it."""
    server.start()
    address = server.uri.replace("//", "//user:s3cr3t@")  # pragma: allowlist secret
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with tracking.run(config, "x", kind="sft", directory=tmp_path / "step") as run:
        pass
    assert not run.id.startswith("pending:")
    printed = capfd.readouterr()
    assert "s3cr3t" not in printed.out + printed.err


CHILD = """
import sys, time
from pathlib import Path
from ospo import tracking
from ospo.config import load_config
config = load_config({params!r}, ["tracking.uri=" + {uri!r}])
with tracking.run(config, "child", kind="sft", directory=Path({directory!r})) as run:
    run.log_metrics(1, {{"loss": 1.0}})
    print(run.id, flush=True)
    time.sleep(60)
"""


def start_child(config: Config, directory: Path) -> tuple[subprocess.Popen[str], str]:
    script = CHILD.format(
        params=str(ROOT / "params.yaml"), uri=config.tracking.uri, directory=str(directory)
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert child.stdout is not None
    return child, child.stdout.readline().strip()


def test_sigterm_marks_the_run_killed(config: Config, client: MlflowClient, tmp_path: Path) -> None:
    child, run_id = start_child(config, tmp_path / "step")
    child.terminate()
    assert child.wait(timeout=60) == 143
    assert client.get_run(run_id).info.status == "KILLED"
    assert not (tmp_path / "step" / ".tracking").exists()


def test_sync_finishes_what_kill_9_left(
    config: Config, client: MlflowClient, tmp_path: Path
) -> None:
    child, run_id = start_child(config, tmp_path / "step")
    assert tracking.sync(config, tmp_path) == 0, "a live run is nobody else's"
    child.kill()
    child.wait(timeout=60)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert tracking.sync(config, tmp_path) == 1
    assert client.get_run(run_id).info.status == "KILLED"
    assert [m.value for m in client.get_metric_history(run_id, "loss")] == [1.0]
    assert tracking.sync(config, tmp_path) == 0


def test_journal_drops_half_a_line_and_keeps_the_rest(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "k")
    journal.append({"op": "batch", "n": 1})
    with pytest.raises(JournalBusy):
        Journal(tmp_path, "k")
    journal.close()
    with journal.file.open("ab") as stream:
        stream.write(b'{"op": "ba')
    again = Journal(tmp_path, "k")
    assert again.pending() == [{"op": "batch", "n": 1}]
    again.append({"op": "batch", "n": 2})
    again.close()
    assert [json.loads(line)["n"] for line in journal.file.read_bytes().splitlines()] == [1, 2]


def test_a_database_that_another_process_holds_is_waited_for(
    config: Config, client: MlflowClient, tmp_path: Path
) -> None:
    """Two pipelines on one sqlite file: neither start nor records may fail because the other one
    writes.
    """
    holder = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(
        7, lambda: holder.execute("COMMIT")
    )  # sqlite itself gives up after 5 seconds
    release.start()
    with tracking.run(config, "x", kind="sft", directory=tmp_path / "step") as run:
        release.join()
        holder.execute("BEGIN EXCLUSIVE")
        run.log_metrics(1, {"loss": 1.0})
        assert not run.flush()
        holder.execute("COMMIT")
    holder.close()
    assert [m.value for m in client.get_metric_history(run.id, "loss")] == [1.0]


FULL = """
import json, logging, resource, signal, sys
from pathlib import Path
from ospo.tracking.journal import Journal
logging.basicConfig(level=logging.ERROR)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
journal = Journal(Path(sys.argv[1]), "k")
for number in range(100):
    journal.append({"op": "batch", "number": number, "text": "x" * 50})
assert [event["number"] for event in journal.pending()] == list(range(100))
assert journal.file.read_bytes().endswith(b"\\n"), "half a line would spoil the next one"
"""


def test_a_full_disk_ends_no_training_and_spoils_no_journal(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("kept in memory only") == 1
    kept = Journal(tmp_path, "k").pending()
    assert [event["number"] for event in kept] == list(range(len(kept)))
    assert 10 < len(kept) < 100


class Server:
    """A real `mlflow server` that can be stopped and started again on the same port."""

    def __init__(self, folder: Path, port: int):
        self.folder, self.port, self.uri = folder, port, f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            str(Path(sys.executable).parent / "mlflow"),
            "server",
            "--workers",
            "1",
            "--host",
            "127.0.0.1",
        ]
        command += [
            "--port",
            str(self.port),
            "--backend-store-uri",
            f"sqlite:///{self.folder}/mlflow.db",
        ]
        command += ["--artifacts-destination", str(self.folder / "mlartifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=environment
            )
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
            except OSError:
                time.sleep(0.2)
            else:
                return
        raise RuntimeError((self.folder / "server.log").read_text())

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(tmp_path, port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    yield server
    server.stop()


@pytest.mark.timeout(900)
def test_nothing_is_lost_while_the_server_is_away(
    config: Config, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Down at the start, up, killed in the middle, up again before the end; then down at the end,
    and sync.
    """
    began = time.monotonic()
    with tracking.run(
        config,
        "early",
        kind="pipeline",
        directory=tmp_path / "early",
        details=tracking.RunDetails(params={"a": 1}),
    ) as early:
        assert time.monotonic() - began < 60, "a server that is away must not hold training up"
        assert early.id.startswith("pending:")
        early.log_metrics(1, {"loss": 1.0})
        with tracking.run(
            config,
            "child",
            kind="sft",
            directory=tmp_path / "child",
            details=tracking.RunDetails(parent_id=early.id),
        ) as child:
            child.log_dict("config.json", {"a": 1})
        assert tracking.sync(config, tmp_path / "child") == 0
        with pytest.raises(tracking.TrackingError, match="still wait"):
            tracking.sync(config, tmp_path / "child", strict=True)
        server.start()
        wait_for(lambda: not early.id.startswith("pending:"), 150)
        early.log_metrics(2, {"loss": 0.5})
        assert early.flush()
        server.stop()
        for step in range(3, 200):
            early.log_metrics(step, {"loss": 1 / step})
        early.log_table("table.json", [{"a": 1}])
        assert not early.flush()
        server.start()
    uri = server.uri
    client = MlflowClient(uri)
    found = client.get_run(early.id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"a": "1"}
    assert sorted(m.step for m in client.get_metric_history(early.id, "loss")) == list(
        range(1, 200)
    )
    assert {f.path for f in client.list_artifacts(early.id)} == {"facts.json", "table.json"}
    assert "does not answer" in caplog.text
    # The child ended while the server was away: the next command sends it.
    assert tracking.sync(config, tmp_path) == 1
    [sent] = client.search_runs([found.info.experiment_id], "tags.`ospo.kind` = 'sft'")
    assert (sent.info.status, sent.data.tags["mlflow.parentRunId"]) == ("FINISHED", early.id)
    sent_files = {f.path for f in client.list_artifacts(sent.info.run_id)}
    assert sent_files == {"facts.json", "config.json"}
    # Resuming by the id of a time without a server finds the same run.
    with tracking.run(
        config, "child", kind="sft", directory=tmp_path / "child", run_id=child.id
    ) as again:
        pass
    assert again.id == sent.info.run_id
    server.stop()
    with pytest.raises(tracking.TrackingError, match="does not answer"):
        tracking.setup(config)
