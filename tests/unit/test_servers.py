"""What supervises the servers: which process is whose, which ports, which runs are lost."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import ROOT
from prefect.client.schemas.objects import StateType

from ospo.files import write_json
from servers import server
from servers.deployed import POOL_TEMPLATE, close_lost_runs
from servers.dvc import run_dvc
from servers.place import HOST, Place, ServerError, allowed_origins, leader, place_here
from servers.processes import MARK, NAME, identity, is_alive, marked
from servers.server import backend, health, holder, last_line, training_page

SLEEP = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("MLFLOW_PORT", "PREFECT_PORT", "PAGE_PORT", "RUNS", "OSPO_ALLOWED_HOSTS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "prefect.yaml").write_text("")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return Place(tmp_path)


@pytest.fixture
def start() -> Iterator[Any]:
    """Processes that wait, with an environment of their own."""
    started: list[subprocess.Popen[str]] = []

    def begin(**environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            SLEEP, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def test_pages_of_configured_names_come_over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSPO_ALLOWED_HOSTS", "ospo.example")
    assert allowed_origins(4200) == [
        "http://127.0.0.1:4200",
        "http://localhost:4200",
        "http://[::1]:4200",
        "https://ospo.example",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [("MLFLOW_PORT", "80"), ("MLFLOW_PORT", "1023"), ("PREFECT_PORT", "65536"), ("RUNS", "0"),
     ("PAGE_PORT", "80"), ("RUNS", "65"), ("MLFLOW_PORT", "http")],
)  # fmt: skip
def test_ports_and_runs_have_limits(
    place: Place, monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    assert place_here(place.root) == place
    monkeypatch.setenv(key, value)
    with pytest.raises(ServerError, match=f"{key}: '{value}' is not accepted. Fix: a number from"):
        place_here(place.root)


def note(place: Place, name: str, pid: int, port: int, started: str | None = None) -> None:
    started = identity(pid) if started is None else started
    address = f"http://{HOST}:{port}"
    write_json(place.file(name), {"pid": pid, "started": started, "address": address})


def test_a_port_that_is_in_use_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    note(place, "mlflow", os.getpid(), 5123)
    assert place_here(place.root).mlflow_port == 5123
    monkeypatch.setenv("MLFLOW_PORT", "5124")
    assert place_here(place.root).mlflow_port == 5124


def test_a_process_is_known_by_its_start(place: Place, start: Any) -> None:
    process = start()
    begun = identity(process.pid)
    assert is_alive(process.pid, begun)
    assert not is_alive(process.pid, begun + "1")
    assert not is_alive(process.pid, "")
    note(place, "mlflow", process.pid, 5000)
    running = leader(place, "mlflow")
    assert running is not None
    assert running.pid == process.pid
    note(place, "mlflow", process.pid, 5000, started=identity(os.getpid()))
    assert leader(place, "mlflow") is None, "another process had this id"


def test_a_process_that_ended_is_not_alive_though_nobody_waited_for_it(start: Any) -> None:
    process = start()
    begun = identity(process.pid)
    process.kill()
    deadline = time.monotonic() + 30
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert identity(process.pid) == ""
    assert not is_alive(process.pid, begun)


def test_only_processes_of_this_folder_and_name_are_its_servers(tmp_path: Path, start: Any) -> None:
    mine, other, elsewhere = (
        start(**{MARK: str(folder), NAME: name})
        for folder, name in ((tmp_path, "mlflow"), (tmp_path, "prefect"), ("/other", "mlflow"))
    )
    assert [process.pid for process in marked(tmp_path, "mlflow")] == [mine.pid]
    assert [process.pid for process in marked(tmp_path, "prefect")] == [other.pid]
    assert [process.pid for process in marked(Path("/other"), "mlflow")] == [elsewhere.pid]


def test_a_worker_of_before_is_not_the_new_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool remembers the heartbeats of a worker that is gone."""
    note(place, "worker", os.getpid(), 0)
    now = place.file("worker").stat().st_mtime
    for beats, works in (([now - 60], False), ([now - 60, now + 1], True), ([], False)):
        monkeypatch.setattr(server, "_heartbeats", lambda _place, found=beats: found)
        assert health(place, "worker") is works


@pytest.mark.parametrize(
    ("uri", "served"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{root}/mlflow.db"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("postgresql://db.example/mlflow", "postgresql://db.example/mlflow"),
    ],
)
def test_which_database_is_served(place: Place, uri: str, served: str) -> None:
    params = place.root / "params.yaml"
    params.write_text(params.read_text().replace("sqlite:///mlflow.db", uri))
    assert backend(place.root) == served.format(root=place.root)


def test_a_server_is_not_served_by_another(place: Place) -> None:
    params = place.root / "params.yaml"
    address = "https://mlflow.example"
    params.write_text(params.read_text().replace("sqlite:///mlflow.db", address))
    with pytest.raises(ServerError, match="is a server already"):
        backend(place.root)


def test_who_holds_a_port() -> None:
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        port = listening.getsockname()[1]
        listening.listen()
        assert str(os.getpid()) in (holder(port) or "")
    assert holder(port) is None


def test_the_last_line_says_why() -> None:
    assert last_line("Traceback\n\nValueError: no\n \n") == "ValueError: no"
    assert last_line("\n") == "it printed nothing"


class Pool:
    """The part of a Prefect client that closing runs takes."""

    def __init__(self, running: list[Any], scheduled: list[Any]):
        self.runs = {StateType.RUNNING: running, StateType.SCHEDULED: scheduled}
        self.set: dict[str, str] = {}

    def read_flow_runs(self, *, flow_run_filter: Any, work_pool_filter: Any) -> list[Any]:
        types = flow_run_filter.state.type.any_
        return [run for kind, runs in self.runs.items() if kind in types for run in runs]

    def set_flow_run_state(self, run_id: str, state: Any, force: bool) -> None:
        assert force
        self.set[run_id] = state.type.value


def scheduled(name: str, deployment: str, minutes: float, auto: bool = True) -> Any:
    start = datetime.now(UTC) + timedelta(minutes=minutes)
    return SimpleNamespace(
        id=name, deployment_id=deployment, auto_scheduled=auto, expected_start_time=start
    )


def test_of_missed_runs_the_latest_makes_up_for_all() -> None:
    pool: Any = Pool(
        [SimpleNamespace(id="running")],
        [
            scheduled("missed 2", "a", -20),
            scheduled("missed 3", "a", -10),
            scheduled("missed 1", "a", -30),
            scheduled("next", "a", 10),
            scheduled("only one", "b", -10),
            scheduled("by hand", "a", -40, auto=False),
        ],
    )
    assert close_lost_runs(pool) == {"crashed": 1, "missed": 2}
    assert pool.set == {"running": "CRASHED", "missed 1": "CANCELLED", "missed 2": "CANCELLED"}


def test_the_template_of_the_pool_takes_three_values_only() -> None:
    variables = POOL_TEMPLATE["variables"]
    assert variables["additionalProperties"] is False
    assert set(variables["properties"]) == {"name", "labels", "stream_output"}
    assert set(POOL_TEMPLATE["job_configuration"]) == set(variables["properties"])


FAILING = """
import sys
print("ospo: a.csv: is missing. Fix: add it", file=sys.stderr)
print("ERROR: failed to reproduce", file=sys.stderr)
sys.exit(3)
"""


def fake_dvc(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """``python -m dvc`` runs ``script``."""
    (folder / "dvc.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_dvcs_exit_code_and_our_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_dvc(tmp_path, monkeypatch, FAILING)
    assert run_dvc("repro") == (3, "ospo: a.csv: is missing. Fix: add it")
    fake_dvc(tmp_path, monkeypatch, FAILING.replace('"ospo: ', '"'))
    assert run_dvc("repro") == (3, "ERROR: failed to reproduce")
    fake_dvc(tmp_path, monkeypatch, "")
    assert run_dvc("repro") == (0, "it printed nothing")


WITH_CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, file=sys.stderr, flush=True)
child.wait()
"""
CALLER = """
import signal, sys
from ospo.endings import exit_on_sigterm
from servers.dvc import run_dvc
exit_on_sigterm()
run_dvc("repro")
"""


def test_an_interrupted_caller_ends_dvc_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_dvc(tmp_path, monkeypatch, WITH_CHILD)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert caller.stderr is not None
    child = psutil.Process(int(caller.stderr.readline()))
    caller.send_signal(signal.SIGTERM)
    assert caller.wait(timeout=60) == 143
    _, alive = psutil.wait_procs([child], timeout=30)
    assert not alive, "DVC's own child trains on"


@pytest.mark.parametrize(
    ("known", "rest"), [("ospo", "/#/experiments/7/runs?workflowType="), ("x", "")]
)
def test_the_address_of_mlflow_opens_the_table_of_runs(
    tmp_path: Path, known: str, rest: str
) -> None:
    """A small server stands in for MLflow; tests/slow/test_operations.py asks the real one."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            there = self.path.endswith(f"experiments/get-by-name?experiment_name={known}")
            self.send_response(200 if there else 404)
            self.end_headers()
            self.wfile.write(b'{"experiment": {"experiment_id": "7"}}' if there else b"{}")

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = Place(tmp_path, server.server_port)
        assert training_page(place, "ospo").startswith(f"{place.mlflow}{rest}")
        assert training_page(place, "ospo").endswith("machine_learning") == bool(rest)
        server.shutdown()
