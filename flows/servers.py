"""``make up`` and ``make down``: MLflow, Prefect and one worker on this machine, at home in this folder.

python -m flows.servers up|down|status

Every server runs in a session of its own, listens on 127.0.0.1 only and carries the mark ``OSPO_SERVERS`` in its
environment, which what it starts inherits: `down` ends the marked processes and nothing else, also those whose parent
died. ``.run/<name>.json`` notes process id, start (a process id is used again one day) and address.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from flows.processes import MARK, NAME, Marked, identity, is_alive, marked
from ospo.errors import OspoError
from ospo.files import read_json, sha256_file, write_json

HOST = "127.0.0.1"
POOL = "ospo"
LIMIT = "ospo-training"  # Prefect's global concurrency limit: training and evaluation on this machine at a time
START_SECONDS = 240.0
ANSWER_SECONDS = 20.0
STOP_SECONDS = 20.0


class ServerError(OspoError):
    """A server does not start, stop or answer; one line with the fix."""


@dataclass(frozen=True)
class Place:
    """Where the servers of one folder live. ``runs``: flow runs that may train at a time."""

    root: Path
    mlflow_port: int = 5000
    prefect_port: int = 4200
    runs: int = 1

    @property
    def state(self) -> Path:
        """Folder of process notes and logs."""
        return self.root / ".run"

    @property
    def mlflow(self) -> str:
        """Address of the MLflow server."""
        return f"http://{HOST}:{self.mlflow_port}"

    @property
    def prefect(self) -> str:
        """Address of the Prefect server; its API is below /api."""
        return f"http://{HOST}:{self.prefect_port}"

    def file(self, name: str) -> Path:
        """Note about one server."""
        return self.state / f"{name}.json"

    def log(self, name: str) -> Path:
        """Log of one server."""
        return self.state / f"{name}.log"

    def environment(self) -> dict[str, str]:
        """What clients of these servers have in their environment: commands run here, and the worker's flow runs."""
        home = os.environ.get("PREFECT_HOME") or str(self.root / ".prefect")
        path = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        mine = {
            "PATH": os.pathsep.join(path),
            "PREFECT_HOME": home,
            "PREFECT_API_URL": f"{self.prefect}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            # A server that restarts is waited for: about two minutes, in growing steps.
            "PREFECT_CLIENT_MAX_RETRIES": "8",
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
            "TOKENIZERS_PARALLELISM": "false",
        }
        return {**os.environ, **mine}


def answers(url: str) -> bool:
    """Whether ``url`` is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 (addresses of this module only)
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def backend(root: Path) -> str:
    """The database that the MLflow server serves: ``tracking.uri`` of params.yaml."""
    from ospo.config import load_config
    from ospo.tracking.store import is_server, without_password

    uri = load_config(root / "params.yaml").tracking.uri
    if is_server(uri):
        raise ServerError(
            f"tracking.uri is a server already ({without_password(uri)}). "
            "Fix: name the database that `make up` is to serve, such as sqlite:///mlflow.db"
        )
    relative = uri.removeprefix("sqlite:///")
    return f"sqlite:///{root / relative}" if uri.startswith("sqlite:///") and not relative.startswith("/") else uri


def commands(place: Place) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Name → (command, environment) of each server, in the order in which they start."""
    scripts = Path(sys.executable).parent
    environment = place.environment()
    server = {key: value for key, value in environment.items() if key not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
    mlflow = [str(scripts / "mlflow"), "server", "--workers", "1", "--host", HOST, "--port", str(place.mlflow_port)]
    artifacts = os.environ.get("MLFLOW_ARTIFACTS_DESTINATION") or str(place.root / "mlartifacts")
    # By the environment: a command line, which may hold a database's password, is for all to see.
    store = {"MLFLOW_BACKEND_STORE_URI": backend(place.root), "MLFLOW_ARTIFACTS_DESTINATION": artifacts}
    prefect = [str(scripts / "prefect"), "server", "start", "--host", HOST, "--port", str(place.prefect_port)]
    worker = [str(scripts / "prefect"), "worker", "start", "--pool", POOL, "--type", "process", "--name", "ospo-worker"]
    return {
        "mlflow": (mlflow, {**server, **store, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}),
        "prefect": (
            prefect,
            {
                **server,
                "PREFECT_UI_API_URL": f"{place.prefect}/api",
                # In memory, its default, a restart forgets who holds a limit's slot, and the slot is lost for good.
                "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            },
        ),
        "worker": (worker, {**environment, "OSPO_LIMIT": LIMIT, "PREFECT_WORKER_QUERY_SECONDS": "5"}),
    }


def health(place: Place, name: str) -> bool:
    """Whether a server does its work."""
    if name == "mlflow":
        return answers(f"{place.mlflow}/health")
    if name == "prefect":
        return answers(f"{place.prefect}/api/ready")
    since = place.file(name).stat().st_mtime if place.file(name).exists() else 0.0
    return any(beat >= since for beat in _heartbeats(place))


def _heartbeats(place: Place) -> list[float]:
    """When the pool's workers last called, in seconds since the epoch."""
    address = f"{place.prefect}/api/work_pools/{POOL}/workers/filter"
    request = urllib.request.Request(address, b"{}", {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310 (addresses of this module only)
            workers = json.load(response)
    except (OSError, ValueError):
        return []
    beats = [worker["last_heartbeat_time"] for worker in workers if worker.get("last_heartbeat_time")]
    return [datetime.fromisoformat(beat).timestamp() for beat in beats]


def _prefect(action: str, place: Place, *arguments: str) -> dict[str, object]:
    """Run an action of ``flows.deployed`` where Prefect's settings point to this place's server."""
    command = [sys.executable, "-m", "flows.deployed", action, *arguments]
    done = subprocess.run(command, cwd=place.root, env=place.environment(), capture_output=True, text=True)
    if done.returncode:
        raise ServerError(
            f"Prefect did not do it: {_last_line(done.stderr)}. "
            f"Fix: look at {place.log('prefect')}, then `make down`, `make up`"
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def leader(place: Place, name: str) -> Marked | None:
    """The process that `up` started under ``name``, where it is still that very process."""
    file = place.file(name)
    note = read_json(file) if file.exists() else None
    if note is None or not is_alive(note["pid"], note["started"]):
        return None
    return Marked(note["pid"], note["address"])


def holder(port: int) -> str | None:
    """Who listens on ``port`` of this machine, in words; None where nobody does."""
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


def check(place: Place) -> list[str]:
    """Names of the servers that must be started. ServerError where something stands in the way; nothing is started."""
    missing = []
    for name, port in (("mlflow", place.mlflow_port), ("prefect", place.prefect_port), ("worker", 0)):
        found = leader(place, name)
        left = marked(place.state, name)
        if found is not None:
            wanted = "" if name == "worker" else f"{HOST}:{port}"
            if wanted and not found.address.endswith(wanted):
                raise ServerError(
                    f"the {name} server runs on {found.address} already. Fix: `make down` first, or leave the port"
                )
            continue
        if left:
            numbers = ", ".join(str(process.pid) for process in left)
            raise ServerError(
                f"the {name} server died and left process {numbers} behind. Fix: `make down`, then `make up`"
            )
        if port and (who := holder(port)):
            raise ServerError(
                f"port {port}, for the {name} server, is taken by {who}. "
                f"Fix: end it, or choose another: make up {name.upper()}_PORT={port + 1}"
            )
        missing.append(name)
    return missing


def launch(place: Place, name: str) -> "subprocess.Popen[bytes]":
    """Start one server and note it; ``wait`` says when it does its work."""
    command, environment = commands(place)[name]
    environment |= {MARK: str(place.state), NAME: name}
    place.state.mkdir(parents=True, exist_ok=True)
    with place.log(name).open("wb") as log:
        process = subprocess.Popen(
            command, cwd=place.root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    address = {"mlflow": place.mlflow, "prefect": place.prefect}.get(name, f"pool {POOL}")
    write_json(place.file(name), {"pid": process.pid, "started": identity(process.pid), "address": address})
    return process


def wait(place: Place, name: str, process: "subprocess.Popen[bytes] | None") -> None:
    """Until a server does its work. ServerError where it ends, or, started long ago (None), does not answer soon."""
    deadline = time.monotonic() + (START_SECONDS if process is not None else ANSWER_SECONDS)
    while not health(place, name):
        if process is not None and process.poll() is not None:
            said = _last_line(place.log(name).read_text(encoding="utf-8", errors="replace"))
            raise ServerError(f"the {name} server ended at once: {said}. Fix: read {place.log(name)}")
        if time.monotonic() > deadline:
            raise ServerError(
                f"the {name} server runs but does not answer. Fix: `make down`, then `make up`; it logs to "
                f"{place.log(name)}"
            )
        time.sleep(0.5)


def up(place: Place) -> list[str]:
    """Start what does not run, deploy prefect.yaml, and return the lines to print. What cannot finish is undone."""
    with _only_one(place):
        missing = check(place)
        started: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for name in ("mlflow", "prefect"):
                if name in missing:
                    started[name] = launch(place, name)
            for name in ("mlflow", "prefect"):
                wait(place, name, started.get(name))
            _deploy(place, _prefect("limits", place, str(place.runs))["deployments"])
            if "worker" in missing:
                _prefect("bury", place)
                started["worker"] = launch(place, "worker")
                wait(place, "worker", started["worker"])
        except BaseException:
            for name in reversed(list(started)):
                stop(place, name)
            raise
    state = "started" if missing else "was running already"
    return [
        f"{state}; `make down` stops it, logs are in {place.state.name}/",
        f"  runs and models     {place.mlflow}",
        f"  flows and schedules {place.prefect}",
        f"  worker              {place.prefect}/work-pools/work-pool/{POOL}",
    ]


def _deploy(place: Place, known: object) -> None:
    """Deploy prefect.yaml, unless it and the flows are as they were and the server still has ``known`` deployments.

    Deploying again would set a schedule going that someone paused.
    """
    sources = [place.root / "prefect.yaml", *sorted((place.root / "flows").glob("*.py"))]
    note = {"sources": [sha256_file(file) for file in sources]}
    file = place.file("deployed")
    if known and file.exists() and read_json(file) == note | {"deployments": known}:
        return
    command = [str(Path(sys.executable).parent / "prefect"), "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=place.root, env=place.environment(), capture_output=True, text=True)
    place.log("deploy").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        raise ServerError(f"prefect.yaml was not deployed: {_last_line(done.stderr or done.stdout)}. Fix: correct it")
    write_json(file, note | {"deployments": _prefect("limits", place, str(place.runs))["deployments"]})


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


def down(place: Place) -> list[str]:
    """End what `up` started, the worker first, so that its flow runs can still say how they ended."""
    with _only_one(place):
        ended = [name for name in ("worker", "prefect", "mlflow") if leader(place, name) or marked(place.state, name)]
        for name in ("worker", "prefect", "mlflow"):
            if stop(place, name):
                raise ServerError(f"the {name} server does not end. Fix: look for it with `ps`")
    return [f"stopped: {', '.join(ended)}" if ended else "nothing was running"]


def status(place: Place) -> list[str]:
    """One line a server."""
    lines = []
    for name in ("mlflow", "prefect", "worker"):
        found = leader(place, name)
        if found is None:
            left = marked(place.state, name)
            lines.append(f"{name:8} {'died and left processes behind: `make down`' if left else 'does not run'}")
        else:
            works = name == "worker" or health(place, name)
            lines.append(f"{name:8} {found.address}, process {found.pid}{'' if works else ', DOES NOT ANSWER'}")
    return lines


@contextmanager
def _only_one(place: Place) -> Iterator[None]:
    place.state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place.state / "lock", timeout=START_SECONDS):
            yield
    except Timeout:
        raise ServerError("another `make up` or `make down` is at work here. Fix: wait for it") from None


def place_here(root: Path) -> Place:
    """The place of a folder: ports and runs from the environment, else those in use, else the usual ones."""
    if not (root / "prefect.yaml").is_file():
        raise ServerError(f"{root}: no prefect.yaml here. Fix: run it in the repository's root")
    usual = Place(root)

    def number(key: str, default: int, low: int, high: int) -> int:
        text = os.environ.get(key) or str(default)
        if not text.isdecimal() or not low <= int(text) <= high:
            raise ServerError(f"{key}: {text!r} is not accepted. Fix: a number from {low} to {high}")
        return int(text)

    def port(name: str, default: int) -> int:
        found = leader(usual, name)
        used = int(found.address.rpartition(":")[2]) if found else default
        return number(f"{name.upper()}_PORT", used, 1024, 65535)

    return Place(root, port("mlflow", 5000), port("prefect", 4200), number("RUNS", 1, 1, 64))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: a problem the user can mend is one line and exit code 2."""
    parser = argparse.ArgumentParser(description="Start or stop MLflow, Prefect and a worker for this folder.")
    parser.add_argument("action", choices=("up", "down", "status"))
    action = parser.parse_args(arguments).action
    try:
        place = place_here(Path.cwd())
        print("\n".join({"up": up, "down": down, "status": status}[action](place)))
    except OspoError as error:
        print(f"ospo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("ospo: interrupted; what this command had started was stopped again", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
