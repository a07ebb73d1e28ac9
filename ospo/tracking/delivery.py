"""Sending a journal's events to MLflow, in order, each at least once; every operation is safe to
repeat.
"""

import logging
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from ospo.tracking.journal import Journal
from ospo.tracking.store import TrackingError, Unreachable, describe, experiment_id, is_permanent

LOGGER = logging.getLogger("ospo.tracking")
PENDING = "pending:"
KEY_TAG = "ospo.run_key"
MAX_METRICS, MAX_PARAMS, MAX_TAGS = 1000, 100, 100  # MLflow's limits on one log_batch


def find_by_key(client: MlflowClient, experiment: str, key: str) -> str | None:
    """The id of the run that carries ``key``."""
    runs = client.search_runs(
        [experiment], filter_string=f"tags.`{KEY_TAG}` = '{key}'", max_results=1
    )
    return str(runs[0].info.run_id) if runs else None


def _create(
    client: MlflowClient, journal: Journal, event: dict[str, Any], allow_orphan: bool
) -> None:
    experiment = experiment_id(client, event["experiment"], event["artifact_location"])
    if journal.attempted and (found := find_by_key(client, experiment, journal.key)):
        journal.set_state(
            run_id=found
        )  # an earlier try did reach the server; only its answer was lost
        return
    tags = dict(event["tags"])
    parent = event["parent"]
    if parent and parent.startswith(PENDING):
        parent = find_by_key(client, experiment, parent.removeprefix(PENDING))
        if parent is None and not allow_orphan:
            raise Unreachable("the parent run is not in MLflow yet")
    if parent:
        tags["mlflow.parentRunId"] = parent
    journal.set_state(attempted=True)
    run = client.create_run(experiment, start_time=event["time"], tags=tags, run_name=event["name"])
    journal.set_state(run_id=run.info.run_id)


def _amend(client: MlflowClient, journal: Journal, event: dict[str, Any]) -> None:
    """Find the ended run that the journal's records are of."""
    run_id: str | None = event["run"]
    if event["run"].startswith(PENDING):
        experiment = experiment_id(client, event["experiment"], event["artifact_location"])
        run_id = find_by_key(client, experiment, event["run"].removeprefix(PENDING))
        if run_id is None:
            raise Unreachable("the run is not in MLflow yet")
    journal.set_state(run_id=run_id)


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _send_batch(client: MlflowClient, run_id: str, events: list[dict[str, Any]]) -> None:
    metrics = [
        Metric(key, value, time, step)
        for e in events
        for key, value, time, step in e.get("metrics", [])
    ]
    params = [Param(key, value) for e in events for key, value in e.get("params", {}).items()]
    tags = [RunTag(key, value) for e in events for key, value in e.get("tags", {}).items()]
    for chunk in _chunks(metrics, MAX_METRICS):
        client.log_batch(run_id, metrics=chunk)
    for chunk in _chunks(params, MAX_PARAMS):
        client.log_batch(run_id, params=chunk)
    for chunk in _chunks(tags, MAX_TAGS):
        client.log_batch(run_id, tags=chunk)


def _send_files(client: MlflowClient, journal: Journal, run_id: str, event: dict[str, Any]) -> None:
    path = journal.find(event["path"])
    if path.is_dir():
        client.log_artifacts(run_id, str(path), event["artifact_path"] or None)
    elif path.exists():
        client.log_artifact(run_id, str(path), event["artifact_path"] or None)
    else:
        LOGGER.error("MLflow run %s: %s was removed before it could be sent", run_id, path.name)


def _send_dataset(client: MlflowClient, run_id: str, event: dict[str, Any]) -> None:
    dataset = Dataset(
        event["name"], event["digest"], "local", event["source"], event["schema"], event["profile"]
    )
    client.log_inputs(
        run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", event["context"])])]
    )


def _send(
    client: MlflowClient, journal: Journal, events: list[dict[str, Any]], allow_orphan: bool
) -> None:
    """Send one group of events of one kind."""
    event, op = events[0], events[0]["op"]
    if op == "create":
        _create(client, journal, event, allow_orphan)
        return
    if op == "amend":
        _amend(client, journal, event)
        return
    run_id = journal.run_id
    if run_id is None:
        raise TrackingError(
            f"run {journal.key} was refused by MLflow; its records stay in {journal.file.name}"
        )
    if op == "batch":
        _send_batch(client, run_id, events)
    elif op == "files":
        _send_files(client, journal, run_id, event)
    elif op == "dataset":
        _send_dataset(client, run_id, event)
    elif op == "resume":
        client.update_run(run_id, status="RUNNING")
    elif op == "end":
        client.set_terminated(run_id, event["status"], event["time"])
    elif op == "amended":
        pass  # nothing to send: the run has ended before
    else:
        raise ValueError(f"unknown event {op!r} in {journal.file}")


def deliver(client: MlflowClient, journal: Journal, allow_orphan: bool = False) -> list[str]:
    """Send everything that waits. Returns one line for each record that MLflow refused (it is then
    passed over).

    Raises Unreachable where the store does not answer (what was sent is noted; call again later),
    and TrackingError where MLflow refuses the run itself.
    """
    refused: list[str] = []
    while events := journal.pending():
        size = 1
        if events[0]["op"] == "batch":
            while size < min(len(events), 500) and events[size]["op"] == "batch":
                size += 1
        try:
            _send(client, journal, events[:size], allow_orphan)
        except (MlflowException, OSError) as error:
            if not is_permanent(error):
                raise Unreachable(describe(error)) from error
            if events[0]["op"] in ("create", "resume"):
                raise TrackingError(
                    f"MLflow refused the run ({describe(error)}). Fix: check tracking.uri, "
                    "tracking.experiment and, "
                    "for a resumed run, that it was not deleted"
                ) from error
            if size > 1:  # one bad record must not take its neighbours with it
                refused += _one_by_one(client, journal, events[:size])
            else:
                refused.append(describe(error))
        journal.set_state(delivered=journal.delivered + size)
    return refused


def _one_by_one(client: MlflowClient, journal: Journal, events: list[dict[str, Any]]) -> list[str]:
    refused = []
    for event in events:
        try:
            _send(client, journal, [event], False)
        except (MlflowException, OSError) as error:
            if not is_permanent(error):
                raise Unreachable(describe(error)) from error
            refused.append(describe(error))
    return refused
