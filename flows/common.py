"""What every flow needs: its parameters with their types, data brought up to date by DVC, one run a
dataset.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run
from pydantic import Field

from ospo import steps
from ospo.config import Config, Dataset, load_config
from ospo.errors import OspoError
from ospo.steps import Lineage
from servers.processes import follow_worker

# What a form shows and the server checks before a run is made; the library checks again, against
# params.yaml.
Preset = Annotated[str | None, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Seed = Annotated[int | None, Field(ge=0)]
Count = Annotated[int | None, Field(ge=1)]
Override = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*=.*$", examples=["credit.budget=64"])
]
Overrides = list[Override] | None
ParamsFile = Annotated[str, Field(min_length=1)]

WAIT_SECONDS = 24 * 3600.0
LEASE_SECONDS = 60.0  # after a kill -9 the next run waits so long for its turn
_PARENT: ContextVar[str | None] = ContextVar("mlflow_parent", default=None)


def flow_config(
    params: str, overrides: list[str] | None, policy: str | None = None, **values: int | None
) -> Config:
    """The parameters of a flow run; one clear line (ConfigError) where they are wrong.

    ``values``: keys with ``__`` for dots; ``preset`` stands for the chosen preset
    (``preset__sft__steps=3``). None is left out.
    """
    follow_worker()
    changes = [*(overrides or []), *([f"policy={policy}"] if policy else [])]
    chosen = load_config(params, changes).policy
    for key, value in values.items():
        if value is not None:
            changes.append(
                f"{key.replace('preset__', f'presets.{chosen}.', 1).replace('__', '.')}={value}"
            )
    return load_config(params, changes)


def lineage() -> Lineage:
    """The MLflow parent run and the Prefect flow run that a step belongs to."""
    return Lineage(parent_run_id=_PARENT.get(), prefect_run_id=str(flow_run.id or ""))


@contextmanager
def within(parent_run_id: str) -> Iterator[None]:
    """Flows called inside nest their MLflow runs below ``parent_run_id``, and find the data up to
    date.
    """
    token = _PARENT.set(parent_run_id)
    try:
        yield
    finally:
        _PARENT.reset(token)


@contextmanager
def one_at_a_time(dataset: Dataset) -> Iterator[None]:
    """Nobody else at work on the dataset and, under a worker of `make up`, this run's turn on this
    machine.

    The run waits for both. Within a pipeline both hold already.
    """
    if _PARENT.get() is not None:
        yield
        return
    limit = os.environ.get("OSPO_LIMIT")  # set by `make up`, which makes the limit
    with (
        concurrency(limit, lease_duration=LEASE_SECONDS) if limit else nullcontext(),
        steps.dataset_lock(dataset, patience=WAIT_SECONDS, told=get_run_logger().warning),
    ):
        yield


@contextmanager
def dataset_ready(dataset: Dataset) -> Iterator[None]:
    """``one_at_a_time``, with the dataset's data up to date."""
    with one_at_a_time(dataset):
        if _PARENT.get() is None:
            dvc_repro(dataset)
        yield


@task(name="dvc repro", task_run_name="dvc repro {dataset}", cache_policy=NO_CACHE)
def dvc_repro(dataset: Dataset) -> None:
    """Bring one dataset's prepared data and item vectors up to date.

    DVC runs in a process group of its own: an interrupted flow ends it with everything it started.
    Raises OspoError with DVC's last line where a stage fails.
    """
    logger = get_run_logger()
    deadline, told = time.monotonic() + WAIT_SECONDS, False
    while True:
        code, said = _dvc("repro", f"vectors@{dataset}")
        if not code:
            return
        if (
            not any(words in said for words in ("acquire lock", "is busy"))
            or time.monotonic() > deadline
        ):
            raise OspoError(f"`dvc repro vectors@{dataset}` failed: {said.removeprefix('ospo: ')}")
        if not told:
            logger.warning("another DVC is at work here (%s); waiting for it to end", said)
        told = True
        time.sleep(5)


def _dvc(*arguments: str) -> tuple[int, str]:
    """Run DVC; its exit code and the line that says most."""
    command = [sys.executable, "-m", "dvc", *arguments]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    }
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    lines: list[str] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            sys.stderr.write(line)
            if line.strip():
                lines.append(line.strip())
        code = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    said = next(
        (line for line in lines if line.startswith("ospo: ")),
        lines[-1] if lines else "it printed nothing",
    )
    return code, said
