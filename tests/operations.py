"""A small copy of the project with its own servers on free ports, for tests that start, kill and
look at everything.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
from conftest import MICRO, ROOT
from waiting import wait_for

from ospo.config import edit_params
from servers import processes
from servers.place import Place, leader


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def copy_project(folder: Path) -> Path:
    """The repository's own files, as git would clone them but with what is not committed yet, made
    small.
    """
    names = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(names, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    edit_params(MICRO, folder / "params.yaml")
    shutil.copy(ROOT / "tests" / "paced.py", folder / "paced.py")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "copy"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True, capture_output=True)
    return folder


class Shop:
    """The copy and its servers."""

    def __init__(self, folder: Path):
        self.root = copy_project(folder)
        self.place = Place(self.root, free_port(), free_port(), page_port=free_port())
        self.api = httpx.Client(base_url=f"{self.place.prefect}/api", timeout=240)
        self.hold = self.root / "hold"  # see paced.py

    def environment(self) -> dict[str, str]:
        """Of commands run in the copy."""
        wanted = {
            "PYTHONPATH": str(self.root),
            "PREFECT_HOME": str(self.root / ".prefect"),
            "MLFLOW_PORT": str(self.place.mlflow_port),
            "PREFECT_PORT": str(self.place.prefect_port),
            "PAGE_PORT": str(self.place.page_port),
            "OMP_NUM_THREADS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "3",  # a minute otherwise
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        unwanted = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", processes.MARK, processes.NAME)
        return {key: value for key, value in os.environ.items() if key not in unwanted} | wanted

    def servers(self, action: str) -> subprocess.CompletedProcess[str]:
        """`make up`, `make down` or `make status`: the command that the Makefile runs."""
        command = [sys.executable, "-m", "servers", action]
        return subprocess.run(
            command, cwd=self.root, env=self.environment(), capture_output=True, text=True
        )

    def up(self) -> str:
        """`make up`; what it printed."""
        done = self.servers("up")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """A call of Prefect's API; again after a 503, its answer while the store is busy, as
        Prefect's clients do.
        """

        def answer() -> httpx.Response | None:
            found = self.api.request(method, path, json=body)
            return None if found.status_code == httpx.codes.SERVICE_UNAVAILABLE else found

        found: httpx.Response = wait_for(answer)
        return found

    def post(self, path: str, **body: Any) -> Any:
        """A call of Prefect's API that must go well."""
        answer = self.ask("POST", path, body)
        assert answer.is_success, answer.text
        return answer.json()

    def schedule(self, deployment: dict[str, Any], rule: str) -> None:
        """Give a deployment one more schedule, as the UI does; ``rule``: iCalendar's."""
        body = [{"schedule": {"rrule": rule, "timezone": "UTC"}, "active": True}]
        answer = self.ask("POST", f"/deployments/{deployment['id']}/schedules", body)
        assert answer.is_success, answer.text

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment by FLOW/NAME."""
        answer = self.ask("GET", f"/deployments/name/{name}")
        assert answer.is_success, answer.text
        return dict(answer.json())

    def run(self, name: str, **parameters: Any) -> str:
        """Start a deployment as the UI's form does; the flow run's id."""
        made = self.post(
            f"/deployments/{self.deployment(name)['id']}/create_flow_run", parameters=parameters
        )
        return str(made["id"])

    def state(self, run_id: str) -> str:
        """State of a flow run, such as COMPLETED."""
        return str(self.ask("GET", f"/flow_runs/{run_id}").json()["state_type"])

    def completed(self, run_id: str, seconds: float = 600) -> dict[str, Any]:
        """Wait for a flow run to end well."""
        wait_for(
            lambda: self.state(run_id) in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"), seconds
        )
        found = dict(self.ask("GET", f"/flow_runs/{run_id}").json())
        log = self.place.log("worker").read_text(errors="replace")[-3000:]
        assert found["state_type"] == "COMPLETED", f"{found['state']}\n{log}"
        return found

    def kill(self, name: str, children: bool) -> None:
        """kill -9 a server; with ``children`` everything it started too."""
        found = leader(self.place, name)
        assert found is not None, f"{name} does not run"
        everything = processes.marked(self.place.state, name) if children else []
        for process in [psutil.Process(found.pid), *everything]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        wait_for(lambda: leader(self.place, name) is None, 60)
