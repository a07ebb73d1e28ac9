"""An append-only file of tracking events: what is written here survives a tracking server that is
away.

One run has one journal, ``<directory>/.tracking/<key>.jsonl``, and beside it ``<key>.json``, its
state: the MLflow run id once there is one, and how many events were delivered. Both are removed
when the run has ended and every event was delivered. The file is locked while its run is alive, so
that another process can tell a live run from a dead one: the lock goes with the process, however
that ends.
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ospo.files import read_json, write_json

FOLDER = ".tracking"
LOGGER = logging.getLogger("ospo.tracking")


class JournalBusy(Exception):
    """The journal belongs to a run that is alive in this or another process."""


class Journal:
    """The events of one run, oldest first. Safe to use from several threads of one process.

    Opening takes the file's lock; raises JournalBusy where another owner holds it.
    """

    def __init__(self, directory: Path, key: str):
        self.key = key
        self.folder = directory / FOLDER
        self.file = self.folder / f"{key}.jsonl"
        self.state_file = self.folder / f"{key}.json"
        self.files = self.folder / key  # small files (tables, dictionaries) that wait to be sent
        self._lock = threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._complained = False
        self._stream: IO[bytes] = self.file.open("a+b", buffering=0)
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._stream.close()
            raise JournalBusy(str(self.file)) from None
        self._events = self._read()
        state = read_json(self.state_file) if self.state_file.exists() else {}
        self.run_id: str | None = state.get("run_id")
        self.delivered: int = min(int(state.get("delivered", 0)), len(self._events))
        self.attempted: bool = bool(state.get("attempted", False))

    def _read(self) -> list[dict[str, Any]]:
        self._stream.seek(0)
        content = self._stream.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(
            content
        ):  # the process died in the middle of a line: that event was never acknowledged
            self._stream.truncate(whole)
        return [json.loads(line) for line in content[:whole].splitlines()]

    def place(self, path: Path) -> str:
        """How an event names a file: from the run's directory where it lies below that, so that
        both may move together before everything is delivered.
        """
        path, home = path.resolve(), self.folder.parent.resolve()
        return str(path.relative_to(home) if path.is_relative_to(home) else path)

    def find(self, place: str) -> Path:
        """The file that ``place`` named."""
        return self.folder.parent.resolve() / place

    def append(self, event: dict[str, Any]) -> None:
        """Add an event; it is in the operating system's hands when this returns."""
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._events.append(event)
            size = self._stream.seek(0, os.SEEK_END)
            try:
                if self._stream.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                self._stream.truncate(size)  # half a line would make the next one unreadable
                self._complain(error)

    def _complain(self, error: OSError) -> None:
        # A full disk must not end a training run: what is in memory is still sent, it only would
        # not survive a kill.
        if not self._complained:
            LOGGER.error(
                "%s cannot be written (%s); records are kept in memory only",
                self.file,
                error.strerror,
            )
        self._complained = True

    def pending(self) -> list[dict[str, Any]]:
        """The events that were not delivered yet."""
        with self._lock:
            return self._events[self.delivered :]

    def first(self) -> dict[str, Any]:
        """The event that describes the run itself."""
        return self._events[0]

    def __len__(self) -> int:
        return len(self._events)

    def set_state(
        self, *, run_id: str | None = None, delivered: int | None = None, attempted: bool = False
    ) -> None:
        """Note progress: the MLflow run id, a count of delivered events, or that creating the run
        was attempted.
        """
        self.run_id = run_id or self.run_id
        self.delivered = self.delivered if delivered is None else delivered
        self.attempted = self.attempted or attempted
        state = {"run_id": self.run_id, "delivered": self.delivered, "attempted": self.attempted}
        try:
            write_json(self.state_file, state)
        except OSError as error:
            self._complain(error)

    @property
    def ended(self) -> bool:
        """Whether the last event is the run's end, or that of what is added to an ended run."""
        return bool(self._events) and self._events[-1]["op"] in ("end", "amended")

    def close(self) -> None:
        """Give the lock back; remove the journal where nothing is left to deliver."""
        if self.ended and self.delivered == len(self._events):
            self.file.unlink()
            self.state_file.unlink(missing_ok=True)
            if self.files.exists():
                shutil.rmtree(self.files)
        self._stream.close()
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def journal_keys(directory: Path) -> Iterator[tuple[Path, str]]:
    """(directory, key) of every journal at or below ``directory``, oldest first."""
    files = sorted(
        directory.rglob(f"{FOLDER}/*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name)
    )
    for file in files:
        yield file.parent.parent, file.stem
