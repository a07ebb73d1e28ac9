"""What ``make up`` asks of the Prefect server: the work pool, limits, and runs that a dead worker
left behind.

python -m servers.deployed limits RUNS | bury      prints one JSON object

Runs in a process of its own: Prefect reads the server's address when it is imported.
"""

import json
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
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


def limits(client: SyncPrefectClient, runs: int) -> dict[str, Any]:
    """Make the work pool, and the limit on how many flow runs train at a time."""
    with suppress(ObjectAlreadyExists):
        client.create_work_pool(
            WorkPoolCreate(name=POOL, type="process", description="Processes on this machine.")
        )
    client.upsert_global_concurrency_limit_by_name(LIMIT, runs)
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    return {"limit": runs, "deployments": len(client.read_deployments(work_pool_filter=pool))}


def _runs(client: SyncPrefectClient, *types: StateType) -> list[FlowRun]:
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))))
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    return client.read_flow_runs(flow_run_filter=wanted, work_pool_filter=pool)


def bury(client: SyncPrefectClient) -> dict[str, Any]:
    """Set right what happened while no worker was there; called when none is.

    Runs that say they run are crashed: their worker is dead. Of the scheduled runs of a deployment
    that were missed, the latest is kept and the others are cancelled: one run makes up for all of
    them.
    """
    dead = _runs(client, StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
    for run in dead:
        client.set_flow_run_state(
            run.id, Crashed(message="Its worker was killed; run it again to go on."), force=True
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
        answer = limits(client, int(arguments[0])) if action == "limits" else bury(client)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
