"""Beginning and ending tracked runs, and finishing what dead ones left behind."""

import logging
import os
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ospo.config import Config
from ospo.tracking.delivery import KEY_TAG, PENDING, deliver, find_by_key
from ospo.tracking.facts import standard_facts, standard_tags
from ospo.tracking.journal import Journal, JournalBusy, journal_keys
from ospo.tracking.runs import MAX_NOTE, NOTE_TAG, Run, now_ms
from ospo.tracking.store import (
    TRAINING_VIEW,
    TrackingError,
    Unreachable,
    artifact_location,
    client_for,
    describe,
    experiment_id,
    is_server,
    tracking_uri,
    without_password,
)

LOGGER = logging.getLogger("ospo.tracking")


class Terminated(SystemExit):
    """SIGTERM arrived. Leaves like SystemExit(143), so that ``finally`` blocks run and the run is
    marked KILLED.
    """


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into Terminated while inside, unless someone else (Prefect, a server) already
    handles it.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    ):
        yield
        return

    def handler(_number: int, _frame: FrameType | None) -> None:
        raise Terminated(143)

    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _status(error: BaseException) -> str:
    if isinstance(error, SystemExit) and error.code in (0, None):
        return "FINISHED"
    # KeyboardInterrupt, SystemExit, a flow's cancellation: someone stopped the run. Anything else
    # went wrong in it.
    return "FAILED" if isinstance(error, Exception) else "KILLED"


def setup(config: Config, root: str | Path = ".") -> str:
    """Make the store and the experiment where they do not exist; returns the store's address.

    The address comes from MLFLOW_TRACKING_URI or ``tracking.uri``; a relative sqlite file and its
    artifacts (``mlartifacts/``) lie under ``root``. Raises TrackingError where the store does not
    answer.
    """
    uri = tracking_uri(config, Path(root))
    try:
        experiment_id(
            client_for(uri), config.tracking.experiment, artifact_location(uri, Path(root))
        )
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"MLflow at {without_password(uri)} does not answer ({describe(error)}). "
            "Fix: start the server (`make up`) or correct tracking.uri in params.yaml"
        ) from error
    return uri


def _open(
    client: MlflowClient,
    directory: Path,
    run_id: str | None,
    create: dict[str, Any],
    resume: dict[str, Any],
) -> Journal:
    """The journal of a new run, or of the run to resume, with its first new event."""
    if run_id is None:
        key = uuid.uuid4().hex
        journal = Journal(directory, key)
        create["tags"] = {**create["tags"], KEY_TAG: key}
        journal.append(create)
        return journal
    for folder, key in journal_keys(directory):
        try:
            journal = Journal(folder, key)
        except JournalBusy:
            continue
        if run_id in (journal.run_id, f"{PENDING}{key}"):
            journal.append(resume)
            return journal
        journal.close()
    if run_id.startswith(PENDING):
        experiment = experiment_id(client, create["experiment"], create["artifact_location"])
        found = find_by_key(client, experiment, run_id.removeprefix(PENDING))
        if found is None:
            raise TrackingError(
                f"run {run_id} is neither in MLflow nor in {directory}. Fix: start a new run"
            )
        run_id = found
    journal = Journal(directory, uuid.uuid4().hex)
    journal.set_state(run_id=run_id)
    journal.append(resume)
    return journal


@dataclass(frozen=True)
class RunDetails:
    """What else is known about a run when it begins.

    - ``params``: the parameters of this step only, nested or flat; ``tags``: empty values are left
      out.
    - ``note``: the run's description in markdown; a run that is resumed keeps its own.
    - ``data_md5``: data set → md5 from dvc.lock, in the artifact ``facts.json``.
    - ``parent_id``: what ``Run.id`` of the run above gave.
    - ``prefect_flow_run_id``: "" takes the one that Prefect put into the environment.
    """

    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, Any] = field(default_factory=dict)
    data_md5: Mapping[str, str] = field(default_factory=dict)
    parent_id: str | None = None
    prefect_flow_run_id: str = ""
    note: str = ""

    def facts(self) -> dict[str, dict[str, Any]]:
        """What the artifact ``facts.json`` holds from the start."""
        digests = {dataset: {"all": md5} for dataset, md5 in self.data_md5.items()}
        return {**standard_facts(), **({"data": digests} if digests else {})}

    def all_tags(self, root: Path, kind: str) -> dict[str, str]:
        """These and the standard tags."""
        flow_run = self.prefect_flow_run_id or os.environ.get("PREFECT__FLOW_RUN_ID")
        return {
            **standard_tags(root),
            "ospo.kind": kind,
            **({"prefect.flow_run_id": flow_run} if flow_run else {}),
            **{key: str(value) for key, value in self.tags.items() if value not in (None, "")},
        }


NO_DETAILS = RunDetails()


@contextmanager
def run(
    config: Config,
    name: str,
    *,
    kind: str,
    directory: str | Path,
    root: str | Path = ".",
    run_id: str | None = None,
    details: RunDetails = NO_DETAILS,
) -> Iterator[Run]:
    """A tracked run for the body of a ``with`` statement.

    ``kind``: pipeline, sft, rl, evaluation, … (tag ``ospo.kind``). ``directory``: the step's own
    folder, where records wait while MLflow is away. ``run_id``: the run to resume, as ``Run.id``
    gave it.

    The run ends FINISHED; FAILED on an exception; KILLED on Ctrl-C, SIGTERM or a cancelled flow. A
    server that does not answer stops nothing. Raises TrackingError where MLflow refuses the run or
    the local database cannot be used.
    """
    directory, root = Path(directory), Path(root)
    uri = tracking_uri(config, root)
    client = client_for(uri)
    tags = details.all_tags(root, kind)
    create = {
        "op": "create",
        "time": now_ms(),
        "name": name,
        "experiment": config.tracking.experiment,
        "artifact_location": artifact_location(uri, root),
        "parent": details.parent_id,
        "tags": tags,
    }
    journal = _open(client, directory, run_id, create, {"op": "resume", "time": now_ms()})
    tracked = Run(client, journal, name, uri)
    try:
        tracked.begin()
    except BaseException:
        journal.close()
        raise
    tracked.log_facts(details.facts())
    if run_id is None:
        tracked.log_params(details.params)
        if details.note:
            tracked.describe(details.note)
    else:
        tracked.set_tags(tags)
    with _terminable():
        try:
            yield tracked
        except BaseException as error:
            tracked.end(_status(error), patience=5)
            raise
        tracked.end("FINISHED", patience=60)


def amend(
    config: Config,
    run_id: str,
    *,
    directory: str | Path,
    root: str | Path = ".",
    metrics: Mapping[str, float] = MappingProxyType({}),
    note: str = "",
) -> None:
    """Add to a run that has ended what is known only now; its status and times stay.

    ``metrics``: of step 0. ``note``: its new description. A server that does not answer stops
    nothing: what waits in ``directory`` is sent by :func:`sync`. A run that is not in MLflow is one
    line in the log.
    """
    directory, root = Path(directory), Path(root)
    uri, now = tracking_uri(config, root), now_ms()
    event = {"op": "amend", "time": now, "run": run_id, "experiment": config.tracking.experiment}
    event["artifact_location"] = artifact_location(uri, root)
    values = [[key, float(value), now, 0] for key, value in metrics.items()]
    tags = {NOTE_TAG: note[:MAX_NOTE]} if note else {}
    journal = Journal(directory, uuid.uuid4().hex)
    try:
        journal.append(event)
        journal.append({"op": "batch", "time": now, "metrics": values, "tags": tags})
        journal.append({"op": "amended", "time": now})
        for line in deliver(client_for(uri), journal):
            LOGGER.error("MLflow refused a record: %s", line)
    except Unreachable as error:
        LOGGER.warning("MLflow does not answer (%s); `ospo sync` sends the records later", error)
    except TrackingError as error:
        LOGGER.error("%s", error)
    finally:
        journal.close()


@dataclass(frozen=True)
class Place:
    """Where MLflow's pages show a run: ids of its experiment and of itself."""

    experiment: str
    run: str

    @property
    def link(self) -> str:
        """The run's page, relative to MLflow's address."""
        return self._page("")

    @property
    def report(self) -> str:
        """The report among the run's files, likewise."""
        return self._page("/artifacts/report.html")

    def _page(self, rest: str) -> str:
        return f"#/experiments/{self.experiment}/runs/{self.run}{rest}?{TRAINING_VIEW}"


def server_address(config: Config, root: str | Path = ".") -> str:
    """Where people open MLflow's pages: the server's address without user and password, "" where
    runs go to a database.
    """
    uri = tracking_uri(config, Path(root))
    return without_password(uri).rstrip("/") if is_server(uri) else ""


def places(config: Config, run_ids: Mapping[str, str], root: str | Path = ".") -> dict[str, Place]:
    """Where the runs are shown; without those that no server knows yet, and none at all where the
    store does not answer.
    """
    uri = tracking_uri(config, Path(root))
    known = {name: id_ for name, id_ in run_ids.items() if id_ and not id_.startswith(PENDING)}
    try:
        experiment = experiment_id(
            client_for(uri), config.tracking.experiment, artifact_location(uri, Path(root))
        )
    except (MlflowException, OSError, TrackingError) as error:
        LOGGER.warning("MLflow does not answer (%s); its pages are not linked", describe(error))
        return {}
    return {name: Place(experiment, run_id) for name, run_id in known.items()}


def sync(
    config: Config, directory: str | Path, root: str | Path = ".", *, strict: bool = False
) -> int:
    """Send what dead runs below ``directory`` left behind, and mark as KILLED those that did not
    end themselves.

    Live runs are left alone. Returns how many runs were completed in MLflow. Where the server still
    does not answer, that is one warning, or with ``strict`` a TrackingError: what waits is not lost
    either way.
    """
    client = client_for(tracking_uri(config, Path(root)))
    waiting: list[Journal] = []
    for folder, key in journal_keys(Path(directory)):
        try:
            waiting.append(Journal(folder, key))
        except JournalBusy:
            continue
    for journal in waiting:
        if len(journal) and not journal.ended:
            journal.append({"op": "end", "time": now_ms(), "status": "KILLED"})
    count, problem = len(waiting), ""
    try:
        for allow_orphan in (
            False,
            True,
        ):  # a child waits for its parent; where that is lost, it goes without
            left = []
            for journal in waiting:
                try:
                    for line in deliver(client, journal, allow_orphan):
                        LOGGER.error("MLflow refused a record: %s", line)
                    journal.close()
                except Unreachable as error:
                    problem = str(error)
                    left.append(journal)
                except (
                    TrackingError
                ) as error:  # this run is refused for good; the others must not suffer
                    LOGGER.error("%s (its records: %s)", error, journal.file)
                    journal.close()
            waiting = left
    finally:
        for journal in waiting:
            journal.close()
    if waiting:
        line = (
            f"records of {len(waiting)} run(s) below {directory} still wait for MLflow "
            f"({problem}). "
            "Fix: start the server (`make up`), then `ospo sync`"
        )
        if strict:
            raise TrackingError(line)
        LOGGER.warning("%s", line)
    return count - len(waiting)
