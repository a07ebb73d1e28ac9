"""Where the servers of one folder live: ports, files, what their clients have in their
environment.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ospo.errors import OspoError
from ospo.files import read_json
from ospo.hosts import OWN_NAMES, configured_hosts
from ospo.paths import SERVERS
from servers.processes import Marked, is_alive

HOST = "127.0.0.1"
POOL = "ospo"
# Prefect's global concurrency limit: training and evaluation on this machine at a time.
LIMIT = "ospo-training"


def allowed_origins(port: int) -> list[str]:
    """Pages whose requests are answered: those of the server at ``port`` itself, and those of the
    configured names.
    """
    own = [f"http://{name}:{port}" for name in OWN_NAMES]
    return [*own, *(f"https://{name}" for name in configured_hosts())]


def _auth_strings() -> dict[str, str]:
    """Prefect's password, where one is set for the server or for its clients, for both."""
    names = ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING")
    given = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return dict.fromkeys(names, given) if given else {}


class ServerError(OspoError):
    """A server does not start, stop or answer; one line with the fix."""


@dataclass(frozen=True)
class Place:
    """Where the servers of one folder live. ``runs``: flow runs that may train at a time."""

    root: Path
    mlflow_port: int = 5000
    prefect_port: int = 4200
    runs: int = 1
    page_port: int = 5050

    @property
    def state(self) -> Path:
        """Folder of process notes and logs."""
        return self.root / SERVERS

    @property
    def mlflow(self) -> str:
        """Address of the MLflow server."""
        return f"http://{HOST}:{self.mlflow_port}"

    @property
    def prefect(self) -> str:
        """Address of the Prefect server; its API is below /api."""
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def page(self) -> str:
        """Address of the page where a query is tried (``ospo page``)."""
        return f"http://{HOST}:{self.page_port}"

    def file(self, name: str) -> Path:
        """Note about one server."""
        return self.state / f"{name}.json"

    def log(self, name: str) -> Path:
        """Log of one server."""
        return self.state / f"{name}.log"

    def environment(self) -> dict[str, str]:
        """What clients of these servers have in their environment: commands run here, and the
        worker's flow runs.
        """
        home = os.environ.get("PREFECT_HOME") or str(self.root / ".prefect")
        path = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        mine = {
            "PATH": os.pathsep.join(path),
            "PREFECT_HOME": home,
            "PREFECT_API_URL": f"{self.prefect}/api",
            **_auth_strings(),
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


def leader(place: Place, name: str) -> Marked | None:
    """The process that `up` started under ``name``, where it is still that very process."""
    file = place.file(name)
    note = read_json(file) if file.exists() else None
    if note is None or not is_alive(note["pid"], note["started"]):
        return None
    return Marked(note["pid"], note["address"])


def place_here(root: Path) -> Place:
    """The place of a folder: ports and runs from the environment, else those in use, else the usual
    ones.
    """
    if not (root / "prefect.yaml").is_file():
        raise ServerError(f"{root}: no prefect.yaml here. Fix: run it in the repository's root")
    usual = Place(root)

    def number(key: str, default: int, low: int, high: int) -> int:
        text = os.environ.get(key) or str(default)
        if not text.isdecimal() or not low <= int(text) <= high:
            raise ServerError(
                f"{key}: {text!r} is not accepted. Fix: a number from {low} to {high}"
            )
        return int(text)

    def port(name: str, default: int) -> int:
        running = leader(usual, name)
        used = int(running.address.rpartition(":")[2]) if running else default
        return number(f"{name.upper()}_PORT", used, 1024, 65535)

    return Place(
        root,
        port("mlflow", 5000),
        port("prefect", 4200),
        number("RUNS", 1, 1, 64),
        port("page", 5050),
    )
