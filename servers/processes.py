"""Telling processes apart: by a mark in their environment, and by their start, as process ids are
used again.
"""

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

from ospo.files import read_json

MARK, NAME = "OSPO_SERVERS", "OSPO_SERVER"  # environment: the state folder; which of the servers
WATCH_SECONDS = 2.0


@dataclass(frozen=True)
class Marked:
    """A server's process and the address it was started for."""

    pid: int
    address: str


def identity(pid: int) -> str:
    """What distinguishes a process from any other that had or will have its id; "" where there is
    none.

    On Linux the boot and the start in clock ticks since then, which no change of the clock moves.
    """
    stat = Path(f"/proc/{pid}/stat")
    try:
        if stat.parent.parent.joinpath("self").exists():
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if fields[0] in "ZX":
                return ""
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
            return f"{boot}/{fields[19]}"
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except (OSError, psutil.NoSuchProcess):
        return ""


def is_alive(pid: int, started: str) -> bool:
    """Whether the process that was ``started`` then is still there."""
    return bool(started) and identity(pid) == started


def marked(state: Path, name: str) -> list[psutil.Process]:
    """Processes that carry the mark of ``state`` and ``name``, this one and its parents
    left out.
    """
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        try:
            environment = process.environ()
            alive = process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            continue  # another user's, or gone meanwhile: not one of ours either way
        if alive and environment.get(MARK) == str(state) and environment.get(NAME) == name:
            found.append(process)
    return found


def follow_worker() -> None:
    """End this process as SIGTERM does once the worker that it runs under is gone, so that it never
    trains on with nothing to stop it.

    Without effect where no worker of `make up` started it. The thread is a daemon: it keeps nothing
    alive.
    """
    file = Path(os.environ.get(MARK, "")) / "worker.json"
    if (
        os.environ.get(NAME) != "worker"
        or not file.is_file()
        or any(t.name == "follow" for t in threading.enumerate())
    ):
        return
    note = read_json(file)
    stopped = threading.Event()

    def watch() -> None:
        while is_alive(note["pid"], note["started"]):
            stopped.wait(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="follow", daemon=True).start()
