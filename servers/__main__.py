"""``make up`` and ``make down``: MLflow, Prefect, one worker and the page where a query is tried,
on this machine, for this folder.

python -m servers up|down|status

Every server runs in a session of its own, listens on 127.0.0.1 only and carries the mark
``OSPO_SERVERS`` in its environment, which what it starts inherits: `down` ends the marked processes
and nothing else, also those whose parent died. ``.run/<name>.json`` notes process id, start (a
process id is used again one day) and address.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ospo.config import load_config
from ospo.endings import Arguments, ending, exit_on_sigterm
from ospo.errors import OspoError
from ospo.files import read_json, sha256_file, write_json
from ospo.paths import PARAMS
from servers.place import HOST, POOL, Place, ServerError, leader, place_here
from servers.processes import marked
from servers.server import (
    START_SECONDS,
    health,
    holder,
    last_line,
    launch,
    stop,
    training_page,
    wait,
)


def check(place: Place) -> list[str]:
    """Names of the servers that must be started. ServerError where something stands in the way;
    nothing is started.
    """
    missing = []
    for name, port in (
        ("mlflow", place.mlflow_port),
        ("prefect", place.prefect_port),
        ("worker", 0),
        ("page", place.page_port),
    ):
        running = leader(place, name)
        left = marked(place.state, name)
        if running is not None:
            wanted = "" if name == "worker" else f"{HOST}:{port}"
            if wanted and not running.address.endswith(wanted):
                raise ServerError(
                    f"the {name} server runs on {running.address} already. Fix: `make down` first, "
                    "or leave the port"
                )
            continue
        if left:
            numbers = ", ".join(str(process.pid) for process in left)
            raise ServerError(
                f"the {name} server died and left process {numbers} behind. Fix: `make down`, then "
                "`make up`"
            )
        if port and (who := holder(port)):
            raise ServerError(
                f"port {port}, for the {name} server, is taken by {who}. "
                f"Fix: end it, or choose another: make up {name.upper()}_PORT={port + 1}"
            )
        missing.append(name)
    return missing


def up(place: Place) -> list[str]:
    """Start what does not run, deploy prefect.yaml, and return the lines to print. What cannot
    finish is undone.
    """
    with _only_one(place):
        missing = check(place)
        started: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for name in ("mlflow", "prefect", "page"):
                if name in missing:
                    started[name] = launch(place, name)
            for name in ("mlflow", "prefect"):
                wait(place, name, started.get(name))
            _deploy(place, _prefect("prepare", place, str(place.runs))["deployments"])
            if "worker" in missing:
                _prefect("close-lost-runs", place)
                started["worker"] = launch(place, "worker")
                wait(place, "worker", started["worker"])
            wait(place, "page", started.get("page"))
        except BaseException:
            for name in reversed(list(started)):
                stop(place, name)
            raise
    state = "started" if missing else "was running already"
    return [
        f"try a query: {place.page}",
        f"{state}; `make down` stops it, logs are in {place.state.name}/",
        f"  runs and models     {training_page(place, _experiment(place))}",
        f"  flows and schedules {place.prefect}",
        f"  worker              {place.prefect}/work-pools/work-pool/{POOL}",
    ]


def _experiment(place: Place) -> str:
    """The experiment that params.yaml names."""
    return load_config(place.root / PARAMS).tracking.experiment


def _prefect(action: str, place: Place, *arguments: str) -> dict[str, object]:
    """Run an action of ``servers.deployed`` where Prefect's settings point to this place's
    server.
    """
    command = [sys.executable, "-m", "servers.deployed", action, *arguments]
    done = subprocess.run(
        command, cwd=place.root, env=place.environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise ServerError(
            f"Prefect refused: {last_line(done.stderr)}. "
            f"Fix: look at {place.log('prefect')}, then `make down`, `make up`"
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _deploy(place: Place, known: object) -> None:
    """Deploy prefect.yaml, unless it and the flows are as they were and the server still has
    ``known`` deployments.

    Deploying again would set a schedule going that someone paused.
    """
    sources = [place.root / "prefect.yaml", *sorted((place.root / "flows").glob("*.py"))]
    note = {"sources": [sha256_file(file) for file in sources]}
    file = place.file("deployed")
    if known and file.exists() and read_json(file) == note | {"deployments": known}:
        return
    command = [str(Path(sys.executable).parent / "prefect"), "--no-prompt", "deploy", "--all"]
    done = subprocess.run(
        command, cwd=place.root, env=place.environment(), capture_output=True, text=True
    )
    place.log("deploy").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        raise ServerError(
            f"prefect.yaml was not deployed: {last_line(done.stderr or done.stdout)}. Fix: correct "
            "it"
        )
    write_json(
        file, note | {"deployments": _prefect("prepare", place, str(place.runs))["deployments"]}
    )


def down(place: Place) -> list[str]:
    """End what `up` started, the worker first, so that its flow runs can still say how they
    ended.
    """
    with _only_one(place):
        ended = [
            name
            for name in ("page", "worker", "prefect", "mlflow")
            if leader(place, name) or marked(place.state, name)
        ]
        for name in ("page", "worker", "prefect", "mlflow"):
            if stop(place, name):
                raise ServerError(f"the {name} server does not end. Fix: look for it with `ps`")
    return [f"stopped: {', '.join(ended)}" if ended else "nothing was running"]


def status(place: Place) -> list[str]:
    """One line per server."""
    lines = []
    for name in ("mlflow", "prefect", "worker", "page"):
        running = leader(place, name)
        if running is None:
            left = marked(place.state, name)
            lines.append(
                f"{name:8} "
                f"{'died and left processes behind: `make down`' if left else 'does not run'}"
            )
        else:
            works = name == "worker" or health(place, name)
            lines.append(
                f"{name:8} {running.address}, process "
                f"{running.pid}{'' if works else ', DOES NOT ANSWER'}"
            )
    return lines


@contextmanager
def _only_one(place: Place) -> Iterator[None]:
    place.state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place.state / "lock", timeout=START_SECONDS):
            yield
    except Timeout:
        raise ServerError(
            "another `make up` or `make down` is running here. Fix: wait for it"
        ) from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: a problem the user can mend is one line and exit code 2."""
    parser = Arguments(
        prog="python -m servers",
        description="Start or stop MLflow, Prefect, a worker and the page for this folder.",
    )
    parser.add_argument("action", choices=("up", "down", "status"))
    action = parser.parse_args(arguments).action
    exit_on_sigterm()
    try:
        place = place_here(Path.cwd())
        print("\n".join({"up": up, "down": down, "status": status}[action](place)))
    except OspoError as error:
        print(f"ospo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (SystemExit, KeyboardInterrupt) as error:
        ended = ending(error)
        if ended is None:
            raise
        print(f"ospo: {ended[1]}; what this command had started was stopped again", file=sys.stderr)
        sys.exit(ended[0])


if __name__ == "__main__":
    main()
