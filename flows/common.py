"""What every flow needs: its parameters with their types, data brought up to date by DVC, one run
per dataset at a time.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Annotated

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run
from pydantic import Field, WithJsonSchema

from flows.presented import AS_IN_PARAMS, install_one_line
from ospo import steps
from ospo.config import NAME, Config, load_config
from ospo.data.stages import listed
from ospo.errors import OspoError
from ospo.paths import PARAMS
from ospo.steps import ParentRuns
from servers.dvc import run_dvc
from servers.processes import follow_worker


def _preset_form() -> dict[str, object]:
    """What a form offers: the presets of params.yaml, likewise, and what params.yaml itself says.
    A list shows as one only where the field has one type, so "nothing" is a word of the list.
    """
    form: dict[str, object] = {"type": "string"}
    try:
        return form | {"enum": [AS_IN_PARAMS, *sorted(load_config(PARAMS).presets)]}
    except OspoError:
        return form


def _dataset_form() -> dict[str, object]:
    """What a form offers: the data sets of params.yaml as it is where the flows are loaded; any
    name where it cannot be read, which the flow run then says.
    """
    form: dict[str, object] = {"type": "string", "pattern": f"^{NAME.pattern}$"}
    try:
        return form | {"enum": load_config(PARAMS).datasets}
    except OspoError:
        return form


# What a form shows and the server checks before a run is made; the library checks again, against
# params.yaml.
Dataset = Annotated[str, Field(pattern=rf"^{NAME.pattern}$"), WithJsonSchema(_dataset_form())]
Preset = Annotated[
    str | None, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$"), WithJsonSchema(_preset_form())
]
Seed = Annotated[int | None, Field(ge=0)]
Count = Annotated[int | None, Field(ge=1)]
Override = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*=.*$", examples=["credit.budget=64"])
]
Overrides = list[Override] | None
ParamsFile = Annotated[str, Field(min_length=1)]

install_one_line()
WAIT_SECONDS = 24 * 3600.0
LEASE_SECONDS = 60.0  # after a kill -9 the next run waits so long for its turn
_PARENT: ContextVar[str | None] = ContextVar("mlflow_parent", default=None)
_DATA_READY: ContextVar[bool] = ContextVar("data_ready", default=False)


def flow_config(
    params: str,
    overrides: list[str] | None,
    policy: str | None = None,
    dataset: str | None = None,
    **values: int | None,
) -> Config:
    """The parameters of a flow run, with the data set's own; one clear line (ConfigError) where
    they are wrong.

    ``values``: keys with ``__`` for dots; ``preset`` stands for the chosen preset
    (``preset__sft__steps=3``). None is left out.
    """
    follow_worker()
    changes = [
        *(overrides or []),
        *([f"policy={policy}"] if policy and policy != AS_IN_PARAMS else []),
    ]
    chosen = load_config(params, changes, dataset).policy
    for key, value in values.items():
        if value is not None:
            changes.append(
                f"{key.replace('preset__', f'presets.{chosen}.', 1).replace('__', '.')}={value}"
            )
    return load_config(params, changes, dataset)


def parent_runs() -> ParentRuns:
    """The MLflow parent run and the Prefect flow run that a step belongs to."""
    return ParentRuns(mlflow=_PARENT.get(), prefect=str(flow_run.id or ""))


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
def data_is_ready() -> Iterator[None]:
    """Flows called inside do not ask DVC: who calls them has, a moment ago."""
    token = _DATA_READY.set(True)
    try:
        yield
    finally:
        _DATA_READY.reset(token)


@contextmanager
def one_at_a_time(dataset: Dataset) -> Iterator[None]:
    """Hold the dataset's runs and, under a worker of `make up`, one of this machine's places for
    training.

    The run waits for both. Within a pipeline both hold already.
    """
    if _PARENT.get() is not None:
        yield
        return
    limit = os.environ.get("OSPO_LIMIT")  # set by `make up`, which makes the limit
    with (
        concurrency(limit, lease_duration=LEASE_SECONDS) if limit else nullcontext(),
        steps.dataset_lock(dataset, patience=WAIT_SECONDS, report=get_run_logger().warning),
    ):
        yield


@contextmanager
def dataset_ready(dataset: Dataset) -> Iterator[None]:
    """``one_at_a_time``, with the dataset's data up to date."""
    with one_at_a_time(dataset):
        if _PARENT.get() is None and not _DATA_READY.get():
            dvc_repro(dataset)
        yield


@flow(name="prepare", flow_run_name="prepare-{dataset}")
def data_ready(dataset: Dataset) -> None:
    """Bring one data set's data up to date, and do nothing else."""
    with dataset_ready(dataset):
        pass


@task(name="dvc repro", task_run_name="dvc repro {dataset}", cache_policy=NO_CACHE)
def dvc_repro(dataset: Dataset) -> None:
    """Bring one dataset's prepared data and item vectors up to date.

    An interrupted flow ends DVC with everything it started. Raises OspoError with DVC's last line
    where a stage fails.
    """
    if dataset not in listed():
        raise OspoError(f"dvc.yaml: has no stages for {dataset}. Fix: run `ospo data stages`")
    logger = get_run_logger()
    deadline, warned = time.monotonic() + WAIT_SECONDS, False
    while True:
        code, line = run_dvc("repro", f"vectors@{dataset}")
        if not code:
            return
        if (
            not any(words in line for words in ("acquire lock", "is busy"))
            or time.monotonic() > deadline
        ):
            raise OspoError(f"`dvc repro vectors@{dataset}` failed: {line.removeprefix('ospo: ')}")
        if not warned:
            logger.warning("another DVC is running here (%s); waiting for it to end", line)
        warned = True
        time.sleep(5)
