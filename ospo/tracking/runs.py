"""A tracked run: its records go through a journal and a thread, so that training never waits for
MLflow.
"""

import hashlib
import json
import logging
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import psutil
from mlflow import MlflowClient

from ospo.errors import OspoError
from ospo.files import atomic_file, write_json
from ospo.tracking.delivery import PENDING, deliver
from ospo.tracking.facts import FACTS
from ospo.tracking.journal import Journal
from ospo.tracking.recorder import Recorder, Rows
from ospo.tracking.store import TrackingError, Unreachable, is_server, without_password

LOGGER = logging.getLogger("ospo.tracking")
FLUSH_SECONDS = 2.0
SYSTEM_SECONDS = 10.0
LOCK_SECONDS = 60.0  # another process may hold a local database this long
MAX_PARAM = 6000  # characters; MLflow's limit
NOTE_TAG, MAX_NOTE = "mlflow.note.content", 8000  # characters; MLflow's limit on a tag


def now_ms() -> int:
    """Milliseconds since the epoch, MLflow's clock."""
    return int(time.time() * 1000)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mapping → dotted keys with string values: ``{"rl": {"steps": 3}}`` → ``{"rl.steps":
    "3"}``.
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = (
                value if isinstance(value, str) else json.dumps(value, default=str)
            )[:MAX_PARAM]
    return flat


def dataset_digest(md5: str | Mapping[str, str]) -> str:
    """One md5 for a data set: dvc.lock's own, or the md5 over (path, md5) of its outputs. At most
    36 characters.
    """
    if isinstance(md5, str):
        return md5[:36]
    lines = "".join(f"{path} {value}\n" for path, value in sorted(md5.items()))
    return hashlib.md5(lines.encode(), usedforsecurity=False).hexdigest()


class Run(Recorder):
    """One MLflow run. Every method returns at once: a thread sends, and keeps trying while the
    server is away.
    """

    def __init__(self, client: MlflowClient, journal: Journal, name: str, uri: str):
        self.name = name
        self._client, self._journal, self._uri = client, journal, uri
        self._sending = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._away = False
        self._tables: list[dict[str, str]] = []
        self._facts: dict[str, dict[str, Any]] = {}
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._work, name=f"mlflow-{name}", daemon=True)

    @property
    def id(self) -> str:
        """The MLflow run id; ``pending:KEY`` while no server has answered. Both forms may be given
        back to run().
        """
        return self._journal.run_id or f"{PENDING}{self._journal.key}"

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of one step. Values are floats without unit unless the name says so; NaN is kept
        as NaN.
        """
        now = now_ms()
        self._put(
            "batch", metrics=[[key, float(value), now, int(step)] for key, value in metrics.items()]
        )

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters, flattened to dotted keys. MLflow refuses to change a parameter that is
        already set.
        """
        self._put("batch", params=flatten(params))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Tags; later values replace earlier ones."""
        self._put("batch", tags={key: str(value) for key, value in tags.items()})

    def describe(self, text: str) -> None:
        """``text`` (markdown) as the run's description; it replaces the one before."""
        self.set_tags({NOTE_TAG: text[:MAX_NOTE]})

    def log_facts(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        """Sections of the artifact ``facts.json``, beside those that it has."""
        for section, values in facts.items():
            self._facts[section] = self._facts.get(section, {}) | dict(values)
        self.log_dict(FACTS, self._facts)

    def log_dict(self, name: str, value: Any) -> None:
        """``value`` as JSON artifact ``name``."""
        path = self._journal.files / name
        write_json(path, value)
        self._put_file(path, name)

    def log_text(self, name: str, text: str) -> None:
        """``text`` as artifact ``name``."""
        path = self._journal.files / name
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        self._put_file(path, name)

    def log_table(self, name: str, rows: Rows) -> None:
        """A table as artifact ``name`` (ends in .json), shown as a table by MLflow's evaluation
        view.

        ``rows``: a polars DataFrame, or a list of dictionaries with the same keys.
        """
        if not name.endswith(".json"):
            raise ValueError(f"table {name!r}: MLflow shows tables from .json artifacts only")
        records = rows.to_dicts() if isinstance(rows, pl.DataFrame) else [dict(row) for row in rows]
        columns = list(records[0]) if records else []
        self.log_dict(
            name,
            {"columns": columns, "data": [[_plain(row[c]) for c in columns] for row in records]},
        )
        if {"path": name, "type": "table"} not in self._tables:
            self._tables.append({"path": name, "type": "table"})
        self.set_tags({"mlflow.loggedArtifacts": json.dumps(self._tables)})

    def log_artifact(self, path: str | Path, artifact_path: str = "") -> None:
        """A file, or everything in a directory, under ``artifact_path``. It must stay in place
        until the run ends; below the run's own directory it may move with that.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"artifact {path} does not exist")
        self._put("files", path=self._journal.place(path), artifact_path=artifact_path)

    def log_dataset(
        self,
        name: str,
        directory: str | Path,
        md5: str | Mapping[str, str],
        context: str = "training",
    ) -> None:
        """A prepared data set as input of the run, with the counts of its stats.json.

        ``md5``: the one in dvc.lock, or path → md5 where it holds several outputs: the digest is
        then the md5 over all of them, and each stands in the artifact ``facts.json``.
        """
        stats = Path(directory) / "stats.json"
        profile = stats.read_text(encoding="utf-8") if stats.exists() else "{}"
        source = json.dumps({"uri": f"dvc:{Path(directory).name}"})
        files = {"": md5} if isinstance(md5, str) else dict(md5)
        self._put(
            "dataset",
            name=name,
            digest=dataset_digest(md5),
            source=source,
            schema="{}",
            profile=profile[:65_535],
            context=context,
        )
        md5s = {Path(file).name or "all": value for file, value in files.items()}
        self.log_facts({"data": {name: md5s}})

    def flush(self) -> bool:
        """Send what waits, now. Returns whether everything arrived."""
        with self._sending:
            return self._deliver()

    def _put(self, op: str, **fields: Any) -> None:
        self._journal.append({"op": op, "time": now_ms(), **fields})
        self._wake.set()

    def _put_file(self, path: Path, name: str) -> None:
        self._put(
            "files",
            path=self._journal.place(path),
            artifact_path=str(Path(name).parent).removeprefix("."),
        )

    def _deliver(self) -> bool:
        try:
            refused = deliver(self._client, self._journal)
        except Unreachable as error:
            if not self._away:
                LOGGER.warning(
                    "MLflow at %s does not answer (%s); run %s continues, its records wait in %s",
                    without_password(self._uri),
                    error,
                    self.name,
                    self._journal.folder,
                )
            self._away = True
            return False
        except OspoError as error:
            LOGGER.error("%s; records of run %s stay in %s", error, self.name, self._journal.folder)
            return False
        except Exception:  # training must not die of its bookkeeping; the journal keeps the records
            LOGGER.exception(
                "records of run %s could not be sent; they stay in %s",
                self.name,
                self._journal.folder,
            )
            return False
        for line in refused:
            LOGGER.error("MLflow refused a record of run %s: %s", self.name, line)
        if self._away:
            LOGGER.warning(
                "MLflow answers again; everything that run %s recorded was sent", self.name
            )
        self._away = False
        return True

    def _work(self) -> None:
        delay, sampled = FLUSH_SECONDS, time.monotonic()
        psutil.cpu_percent()  # the first call only starts the measurement
        while not self._stop.wait(delay):
            if time.monotonic() - sampled >= SYSTEM_SECONDS:
                sampled = time.monotonic()
                self._sample()
            if self._wake.is_set() or self._away:
                self._wake.clear()
                with self._sending:
                    arrived = self._deliver()
                delay = FLUSH_SECONDS if arrived else min(delay * 2, 30.0)

    def _sample(self) -> None:
        memory = psutil.virtual_memory()
        metrics = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_memory_usage_megabytes": psutil.Process().memory_info().rss / 1e6,
        }
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            metrics["system/gpu_0_memory_usage_megabytes"] = torch.cuda.memory_allocated() / 1e6
        self.log_metrics(int(time.monotonic() - self._started), metrics)

    def begin(self) -> None:
        """Start the run in MLflow, or without it where a server does not answer. Used by run()."""
        with self._sending:
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    deliver(self._client, self._journal)
                    break
                except Unreachable as error:
                    if is_server(self._uri):
                        self._away = True
                        LOGGER.warning(
                            "MLflow at %s does not answer; run %s starts without it, its records "
                            "wait in %s",
                            without_password(self._uri),
                            self.name,
                            self._journal.folder,
                        )
                        break
                    if time.monotonic() > deadline:
                        raise TrackingError(
                            f"the MLflow store {without_password(self._uri)} cannot be written "
                            f"({error}). "
                            "Fix: free the disk or the lock on it, or set another tracking.uri"
                        ) from error
                    time.sleep(0.5)
        self._thread.start()

    def end(self, status: str, patience: float) -> None:
        """Finish with ``status``, waiting at most about ``patience`` seconds for MLflow. Used by
        run().
        """
        self._put("end", status=status)
        self._stop.set()
        self._thread.join(timeout=patience)
        if self._sending.acquire(timeout=1):
            try:
                arrived = self._deliver()
            finally:
                self._sending.release()
            if not arrived:
                LOGGER.warning(
                    "records of run %s were not all sent; `ospo sync` sends them later", self.name
                )
        self._journal.close()


def _plain(value: Any) -> Any:
    """A value that JSON can hold: NaN and infinities become null, as MLflow's table view shows
    them.
    """
    if isinstance(value, float) and value - value != 0:
        return None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | dict | None) else str(value)
