"""What ``make up`` asks of the Prefect server: the work pool, limits, and runs that a dead worker
left behind.

python -m servers.deployed prepare RUNS | close-lost-runs      prints one JSON object

Runs in a process of its own: Prefect reads the server's address when it is imported.
"""

import json
import sys
from datetime import UTC, datetime
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Cancelled, Crashed

from servers.place import LIMIT, POOL

# What a flow run or a deployment may set for its process. Not the command, the environment or the
# working directory, as Prefect's own template allows: whoever may start a run could then run
# anything. ``env`` must not stand in job_configuration either: Prefect merges a run's into it.
POOL_TEMPLATE: dict[str, Any] = {
    "variables": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "title": "Name of the process"},
            "labels": {
                "type": "object",
                "title": "Labels",
                "additionalProperties": {"type": "string"},
            },
            "stream_output": {"type": "boolean", "default": True, "title": "Show its output"},
        },
    },
    "job_configuration": {
        "name": "{{ name }}",
        "labels": "{{ labels }}",
        "stream_output": "{{ stream_output }}",
    },
}


def prepare(client: SyncPrefectClient, runs: int) -> dict[str, Any]:
    """Make the work pool with its template, and the limit on how many flow runs train at a time."""
    description = "Processes on this machine."
    try:
        client.create_work_pool(
            WorkPoolCreate(
                name=POOL, type="process", description=description, base_job_template=POOL_TEMPLATE
            )
        )
    except ObjectAlreadyExists:
        client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=POOL_TEMPLATE))
    client.upsert_global_concurrency_limit_by_name(LIMIT, runs)
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    return {"limit": runs, "deployments": len(client.read_deployments(work_pool_filter=pool))}


def _runs(client: SyncPrefectClient, *types: StateType) -> list[FlowRun]:
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))))
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    return client.read_flow_runs(flow_run_filter=wanted, work_pool_filter=pool)


def close_lost_runs(client: SyncPrefectClient) -> dict[str, Any]:
    """Correct the states of runs while no worker is there.

    Runs that say they run are crashed: their worker is dead. Of the scheduled runs of a deployment
    that were missed, the latest is kept and the others are cancelled: one run makes up for all of
    them.
    """
    dead = _runs(client, StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
    for run in dead:
        client.set_flow_run_state(
            run.id, Crashed(message="Its worker was killed; run it again to resume."), force=True
        )
    now = datetime.now(UTC)
    late: dict[Any, list[FlowRun]] = {}
    for run in _runs(client, StateType.SCHEDULED):
        if run.auto_scheduled and run.expected_start_time and run.expected_start_time < now:
            late.setdefault(run.deployment_id, []).append(run)
    missed = 0
    for runs in late.values():
        runs.sort(key=lambda run: run.expected_start_time or now)
        for run in runs[:-1]:
            client.set_flow_run_state(
                run.id, Cancelled(message="Missed; a later run takes its place."), force=True
            )
            missed += 1
    return {"crashed": len(dead), "missed": missed}


def main() -> None:
    """Command line for servers."""
    action, *arguments = sys.argv[1:]
    with get_client(sync_client=True) as client:
        answer = (
            prepare(client, int(arguments[0])) if action == "prepare" else close_lost_runs(client)
        )
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
