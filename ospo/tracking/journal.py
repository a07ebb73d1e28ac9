"""An append-only file of tracking events: what is written here survives a tracking server that is away.

One run has one journal, ``<directory>/.tracking/<key>.jsonl``, and beside it ``<key>.json``, its state: the MLflow run
id once there is one, and how many events were delivered. Both are removed when the run has ended and every event was
delivered. The file is locked while its run is alive, so that another process can tell a live run from a dead one: the
lock goes with the process, however that ends.
"""

import fcntl
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ospo.files import read_json, write_json

FOLDER = ".tracking"


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
        self._stream: IO[bytes] = self.file.open("a+b")
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
        if whole < len(content):  # the process died in the middle of a line: that event was never acknowledged
            self._stream.truncate(whole)
        return [json.loads(line) for line in content[:whole].splitlines()]

    def append(self, event: dict[str, Any]) -> None:
        """Add an event; it is in the operating system's hands when this returns."""
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()
            self._events.append(event)

    def pending(self) -> list[dict[str, Any]]:
        """The events that were not delivered yet."""
        with self._lock:
            return self._events[self.delivered :]

    def first(self) -> dict[str, Any]:
        """The event that describes the run itself."""
        return self._events[0]

    def __len__(self) -> int:
        return len(self._events)

    def set_state(self, *, run_id: str | None = None, delivered: int | None = None, attempted: bool = False) -> None:
        """Note progress: the MLflow run id, a count of delivered events, or that creating the run was attempted."""
        self.run_id = run_id or self.run_id
        self.delivered = self.delivered if delivered is None else delivered
        self.attempted = self.attempted or attempted
        write_json(self.state_file, {"run_id": self.run_id, "delivered": self.delivered, "attempted": self.attempted})

    @property
    def ended(self) -> bool:
        """Whether the last event is the run's end."""
        return bool(self._events) and self._events[-1]["op"] == "end"

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
    files = sorted(directory.rglob(f"{FOLDER}/*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    for file in files:
        yield file.parent.parent, file.stem
