"""One step: run, resumed or skipped, with its state beside its files, in one process or several."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ospo import distributed, tracking
from ospo.config import Config
from ospo.errors import InputError, OspoError
from ospo.files import is_full, read_json, sha256_json, verify_manifest, write_json
from ospo.steps.inputs import PREPARED, data_md5

LOGGER = logging.getLogger("ospo.steps")

RUNS = Path("runs")


@dataclass(frozen=True)
class StepResult:
    """A finished step."""

    name: str
    dataset: str
    directory: Path
    fingerprint: str
    run_id: str
    skipped: bool
    seconds: float

    @property
    def model(self) -> Path:
        """Where a training step leaves its policy."""
        return self.directory / "model"


@dataclass(frozen=True)
class Lineage:
    """Who asked for a step: the MLflow parent run and the Prefect flow run ("" where there is
    none).
    """

    parent_run_id: str | None = None
    prefect_run_id: str = ""


NOBODY = Lineage()


def policy_directory(dataset: str, name: str) -> Path:
    """Where the step ``name`` leaves its policy."""
    return RUNS / dataset / name / "model"


def read_state(directory: Path, fingerprint: str | None = None) -> dict[str, Any]:
    """A step's ``step.json``; {} where there is none, or one of another fingerprint than the one
    that is asked for.
    """
    file = directory / "step.json"
    state = read_json(file) if file.exists() else {}
    return {} if fingerprint is not None and state.get("fingerprint") != fingerprint else state


def finished(dataset: str, name: str) -> dict[str, Any]:
    """The state of a finished step. OspoError where it has not finished."""
    directory = RUNS / dataset / name
    state = read_state(directory)
    if not state.get("finished"):
        command = {"sft": "sft", "evaluation": "evaluate"}.get(name, f"train --algorithm {name}")
        raise OspoError(
            f"{directory}: has not finished. Fix: run `ospo {command} --dataset {dataset}`"
        )
    return state


@contextmanager
def dataset_lock(
    dataset: str, patience: float = 0.0, told: Callable[[str], object] = lambda line: None
) -> Iterator[None]:
    """Hold the dataset's runs for this process; the lock goes with the process, however that ends.

    Where another process works on them it is waited for, at most ``patience`` seconds; ``told``
    gets one line about that. OspoError where they do not become free. Of a run in several processes
    the main one holds them for all.
    """
    if not distributed.is_main():
        yield
        return
    RUNS.joinpath(dataset).mkdir(parents=True, exist_ok=True)
    lock = FileLock(RUNS / dataset / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if patience > 0:
            told(f"runs/{dataset}: another run is working on it; waiting for it to end")
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise OspoError(
                f"runs/{dataset}: another run is working on it. Fix: wait for it to end, or stop "
                "it, then run again"
            ) from None
    try:
        yield
    finally:
        lock.release()


def run_step(
    config: Config,
    dataset: str,
    name: str,
    *,
    kind: str,
    inputs: dict[str, Any],
    params: dict[str, Any],
    lineage: Lineage,
    work: Callable[[Path, tracking.Run], None],
) -> StepResult:
    """Run, resume or skip one step; see the package's docstring.

    In several processes all come to the same decision from the same files, before the main one
    changes any.
    """
    directory = RUNS / dataset / name
    state_file = directory / "step.json"
    fingerprint = sha256_json({"inputs": inputs, "params": params})
    state = read_state(directory, fingerprint)
    if state.get("finished") and (damage := _damage(directory, kind)):
        LOGGER.warning("%s; the step is done again", damage)
        state = {}
    distributed.together()
    if state.get("finished"):
        return StepResult(
            name, dataset, directory, fingerprint, state["run_id"], True, state["seconds"]
        )
    if not distributed.is_main():
        distributed.together()
        work(directory, distributed.Follower())  # type: ignore[arg-type]
        distributed.together()
        return StepResult(name, dataset, directory, fingerprint, "", False, 0.0)
    run_id = state.get("run_id")
    if run_id is None and directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tracking.run(
        config,
        f"{name}-{dataset}",
        kind=kind,
        directory=directory,
        parent_id=lineage.parent_run_id,
        run_id=run_id,
        params=params,
        tags={"ospo.dataset": dataset, "ospo.fingerprint": fingerprint},
        data_md5={dataset: tracking.dataset_digest(data_md5(dataset))},
        prefect_flow_run_id=lineage.prefect_run_id or None,
    ) as run:
        write_json(state_file, {"fingerprint": fingerprint, "run_id": run.id, "finished": False})
        run.log_dataset(dataset, PREPARED / dataset, data_md5(dataset), context=kind)
        distributed.together()
        with _full_disk_told(directory):
            work(directory, run)
    seconds = round(time.monotonic() - started, 1)
    write_json(
        state_file,
        {"fingerprint": fingerprint, "run_id": run.id, "finished": True, "seconds": seconds},
    )
    distributed.together()
    return StepResult(name, dataset, directory, fingerprint, run.id, False, seconds)


def _damage(directory: Path, kind: str) -> str:
    """What is wrong with the files of a finished step's policy; "" where they are whole, or the
    step makes none.
    """
    if kind not in ("sft", "rl"):
        return ""
    try:
        verify_manifest(directory / "model")
    except InputError as error:
        return str(error).partition(" Fix: ")[0].removesuffix(".")
    return ""


@contextmanager
def _full_disk_told(directory: Path) -> Iterator[None]:
    """A full disk is one clear line. What was half written is removed; the last good checkpoint
    stays.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        from ospo.training.callbacks import last_checkpoint

        last = last_checkpoint(directory / "checkpoints")
        kept = f"{last.name} is whole" if last else "there is no checkpoint yet"
        raise OspoError(
            f"{directory}: the disk is full; {kept}. Fix: free some space (`ospo doctor` says how "
            "much there is), then "
            "run the same command again: it goes on from there"
        ) from error
