"""One server: its command, whether it does its work, how it starts and ends."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from datetime import datetime
from pathlib import Path

import psutil

from ospo.files import write_json
from ospo.hosts import allowed_hosts
from ospo.paths import ARTIFACTS, PARAMS
from servers.place import (
    HOST,
    LIMIT,
    POOL,
    Place,
    ServerError,
    allowed_origins,
    leader,
)
from servers.processes import MARK, NAME, identity, marked

START_SECONDS = 240.0
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
ANSWER_SECONDS = 20.0
STOP_SECONDS = 20.0


def backend(root: Path) -> str:
    """The database that the MLflow server serves: ``tracking.uri`` of params.yaml."""
    from ospo.config import load_config
    from ospo.tracking.store import is_server, without_password

    uri = load_config(root / PARAMS).tracking.uri
    if is_server(uri):
        raise ServerError(
            f"tracking.uri is a server already ({without_password(uri)}). "
            "Fix: name the database that `make up` is to serve, such as sqlite:///mlflow.db"
        )
    relative = uri.removeprefix("sqlite:///")
    return (
        f"sqlite:///{root / relative}"
        if uri.startswith("sqlite:///") and not relative.startswith("/")
        else uri
    )


def commands(place: Place) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Name → (command, environment) of each server, in the order in which they start."""
    scripts = Path(sys.executable).parent
    environment = place.environment()
    server = {
        key: value
        for key, value in environment.items()
        if key not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
    }
    mlflow = [str(scripts / "mlflow"), "server", "--workers", "1"]
    prefect = [sys.executable, "-m", "servers.prefect_app"]
    worker = [str(scripts / "prefect"), "worker", "start", "--pool", POOL, "--type", "process"]
    return {
        "mlflow": (
            [*mlflow, "--host", HOST, "--port", str(place.mlflow_port)],
            server | _mlflow_settings(place),
        ),
        "prefect": (
            [*prefect, "--host", HOST, "--port", str(place.prefect_port)],
            server | _prefect_settings(place),
        ),
        "worker": (
            [*worker, "--name", "ospo-worker"],
            {**environment, "OSPO_LIMIT": LIMIT, "PREFECT_WORKER_QUERY_SECONDS": "5"},
        ),
        "page": (
            [sys.executable, "-m", "ospo.cli", "page", "--port", str(place.page_port)],
            environment,
        ),
    }


def _mlflow_settings(place: Place) -> dict[str, str]:
    """MLflow's store and files, and the pages and names that it answers.

    By the environment: a command line, which may hold a database's password, is for all to see.
    """
    port = place.mlflow_port
    artifacts = os.environ.get("MLFLOW_ARTIFACTS_DESTINATION") or str(place.root / ARTIFACTS)
    names = allowed_hosts()
    hosts = [*names, *(f"{name}:{port}" for name in names)]
    return {
        "MLFLOW_BACKEND_STORE_URI": backend(place.root),
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(allowed_origins(port)),
    }


def _prefect_settings(place: Place) -> dict[str, str]:
    """Where Prefect's pages find its API, and which pages may call it."""
    return {
        "PREFECT_UI_API_URL": f"{place.prefect}/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(allowed_origins(place.prefect_port)),
        # In memory, its default, a restart forgets which run holds a limit's slot, and the slot is
        # lost for good.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
    }


def answers(url: str) -> bool:
    """Whether ``url`` is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 (addresses of this module only)
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def training_page(place: Place, experiment: str) -> str:
    """The address of MLflow's table of runs in ``experiment``, in the view of model training; the
    server's own address where there is no such experiment yet.
    """
    name = urllib.parse.quote(experiment)
    asked = f"{place.mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}"
    try:
        with urllib.request.urlopen(asked, timeout=5) as response:  # noqa: S310 (as above)
            found = json.load(response)["experiment"]["experiment_id"]
    except (OSError, ValueError):
        return place.mlflow
    # Without it MLflow 3.17 opens the view that the browser chose last, at first that of GenAI.
    return f"{place.mlflow}/#/experiments/{found}/runs?workflowType=machine_learning"


def health(place: Place, name: str) -> bool:
    """Whether a server does its work."""
    if name == "mlflow":
        return answers(f"{place.mlflow}/health")
    if name == "prefect":
        return answers(f"{place.prefect}/api/ready")
    if name == "page":
        return answers(f"{place.page}/health")
    since = place.file(name).stat().st_mtime if place.file(name).exists() else 0.0
    return any(beat >= since for beat in _heartbeats(place))


def _heartbeats(place: Place) -> list[float]:
    """When the pool's workers last called, in seconds since the epoch."""
    address = f"{place.prefect}/api/work_pools/{POOL}/workers/filter"
    headers = {"Content-Type": "application/json"}
    if auth := place.environment().get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(auth.encode()).decode()}"
    request = urllib.request.Request(address, b"{}", headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310 (addresses of this module only)
            workers = json.load(response)
    except (OSError, ValueError):
        return []
    beats = [
        worker["last_heartbeat_time"] for worker in workers if worker.get("last_heartbeat_time")
    ]
    return [datetime.fromisoformat(beat).timestamp() for beat in beats]


def holder(port: int) -> str | None:
    """What listens on ``port`` of this machine, in words; None where it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            pass
        else:
            return None
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass  # another user's process: its name is not ours to see
    return "another process"


def launch(place: Place, name: str) -> "subprocess.Popen[bytes]":
    """Start one server and note it; ``wait`` says when it does its work. TrackingError where
    MLflow's database cannot be opened.
    """
    if name == "mlflow":
        from ospo.tracking.store import open_database

        open_database(backend(place.root))
    command, environment = commands(place)[name]
    environment |= {MARK: str(place.state), NAME: name}
    place.state.mkdir(parents=True, exist_ok=True)
    with place.log(name).open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=place.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    addresses = {"mlflow": place.mlflow, "prefect": place.prefect, "page": place.page}
    address = addresses.get(name, f"pool {POOL}")
    write_json(
        place.file(name), {"pid": process.pid, "started": identity(process.pid), "address": address}
    )
    return process


def wait(place: Place, name: str, process: "subprocess.Popen[bytes] | None") -> None:
    """Until a server does its work. ServerError where it ends, or, started long ago (None), does
    not answer soon.
    """
    deadline = time.monotonic() + (START_SECONDS if process is not None else ANSWER_SECONDS)
    while not health(place, name):
        if process is not None and process.poll() is not None:
            reason = last_line(place.log(name).read_text(encoding="utf-8", errors="replace"))
            raise ServerError(
                f"the {name} server ended at once: {reason}. Fix: read {place.log(name)}"
            )
        if time.monotonic() > deadline:
            raise ServerError(
                f"the {name} server runs but does not answer. Fix: `make down`, then `make up`; it "
                "logs to "
                f"{place.log(name)}"
            )
        time.sleep(0.5)


def last_line(text: str) -> str:
    """The last line that is not blank, for an error message."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def stop(place: Place, name: str) -> int:
    """End a server and everything it started; returns how many processes that were."""
    found = leader(place, name)
    processes = marked(place.state, name)
    if found is not None and found.pid not in [process.pid for process in processes]:
        processes.append(psutil.Process(found.pid))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=STOP_SECONDS)
        processes = marked(place.state, name)
        if not processes:
            break
    place.file(name).unlink(missing_ok=True)
    return len(processes)
