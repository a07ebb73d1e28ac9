"""Flows whose calls run side by side, for tests. Light: each process imports this anew."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from waiting import wait_for

from flows.beside import side_by_side
from ospo.errors import InputError

LINGER = 60.0  # seconds


@flow(name="inner")
def inner() -> tuple[str, str]:
    within()
    return str(flow_run.id), str(flow_run.parent_flow_run_id)


@task(cache_policy=NO_CACHE)
def within() -> None:
    pass


def look(folder: str, name: str) -> dict[str, Any]:
    """What the process finds, once its neighbour is there too."""
    (Path(folder) / name).touch()
    wait_for(lambda: len(list(Path(folder).iterdir())) == 2)
    run_id, parent = inner()
    os.kill(os.getpid(), signal.SIGINT)  # a terminal's Ctrl-C: its parent ends it, not this
    names = ("PREFECT_API_URL", "PREFECT_UI_URL", "OMP_NUM_THREADS")
    return {"pid": os.getpid(), "run": run_id, "parent": parent} | {
        n: os.environ.get(n) for n in names
    }


def fail(folder: str) -> None:
    wait_for(lambda: list(Path(folder).iterdir()))
    raise InputError("a.csv", "query", "is empty", "fill it")


def crash(folder: str) -> None:
    wait_for(lambda: list(Path(folder).iterdir()))
    os._exit(9)


def alone(folder: str, name: str) -> int:
    """How many of its kind are there while it is."""
    mark = Path(folder) / name
    mark.touch()
    other = {"a": "b", "b": "a"}.get(name)
    if other:
        wait_for(lambda: any(file.name[0] == other for file in Path(folder).iterdir()))
        time.sleep(1)  # a third that did not wait for its turn would be there by now
    seen = len([file for file in Path(folder).iterdir() if len(file.name) == 1])
    mark.rename(f"{mark} left")
    return seen


def linger(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(LINGER)


@flow
def both(folder: str) -> list[dict[str, Any]]:
    with side_by_side(2, threads=1) as beside:
        for name in "ab":
            beside.start(name, look, {"folder": folder, "name": name})
        results = beside.results()
    return [results[name] for name in "ab"]


@flow
def one_fails(folder: str, how: str) -> None:
    with side_by_side(2, threads=1) as beside:
        for name in ("linger", how):
            beside.start(name, globals()[name], {"folder": folder})
        beside.results()


@flow
def linger_on(folder: str) -> None:
    with side_by_side(2, threads=1) as beside:
        for name in "ab":
            beside.start(name, linger, {"folder": folder})
        beside.results()


@flow
def in_turn(folder: str) -> dict[str, Any]:
    with side_by_side(2, threads=1) as beside:
        for name in "abc":
            beside.start(name, alone, {"folder": folder, "name": name})
        return beside.results()


if __name__ == "__main__":
    linger_on(sys.argv[1])
