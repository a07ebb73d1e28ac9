"""One step: run, resumed or skipped, with its state beside its files, in one process or several."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ospo import distributed, tracking
from ospo.config import Config
from ospo.errors import InputError, OspoError
from ospo.files import is_full, read_json, sha256_json, verify_manifest, write_json
from ospo.paths import RUNS
from ospo.steps.replace import attempt, begin_anew, replace, settle

LOGGER = logging.getLogger("ospo.steps")
Work = Callable[[Path, tracking.Recorder], None]


@dataclass(frozen=True)
class StepResult:
    """A finished step. ``run_id``: its MLflow run, "" in processes other than the main one."""

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
class ParentRuns:
    """The runs that a step belongs to: the MLflow parent run and the Prefect flow run ("" where
    there is none).
    """

    mlflow: str | None = None
    prefect: str = ""


NO_PARENTS = ParentRuns()


def no_damage(directory: Path) -> str:
    """For results whose files nothing later is built on."""
    return ""


def policy_damage(directory: Path) -> str:
    """What is wrong with the files of a finished step's policy; "" where they are whole."""
    try:
        verify_manifest(directory / "model")
    except InputError as error:
        return str(error).partition(" Fix: ")[0].removesuffix(".")
    return ""


@dataclass(frozen=True)
class Step:
    """What a step is called and what its result depends on.

    - ``name``: its folder below ``runs/<dataset>``; ``kind``: the tag ``ospo.kind``.
    - ``inputs`` (hashes) and ``params`` (:mod:`ospo.steps.parameters`) make its fingerprint.
    - ``data_md5`` (data set → md5) and ``tags`` are noted on the MLflow run.
    - ``about``: how the description of its MLflow run begins.
    - ``damage``: says what is wrong with the files of a finished result, "" for nothing.
    - ``resumable``: a result or an interrupted attempt of the same fingerprint is taken up;
      otherwise the step is done from the start each time.
    """

    name: str
    kind: str
    inputs: Mapping[str, Any]
    params: Mapping[str, Any]
    data_md5: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    about: str = ""
    damage: Callable[[Path], str] = no_damage
    resumable: bool = True

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of everything that the result depends on."""
        return sha256_json({"inputs": self.inputs, "params": self.params})


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
    settle(directory)
    state = read_state(directory)
    if not state.get("finished"):
        command = {"sft": "sft", "evaluation": "evaluate"}.get(name, f"train --algorithm {name}")
        raise OspoError(
            f"{directory}: has not finished. Fix: run `ospo {command} --dataset {dataset}`"
        )
    return state


def run_step(
    config: Config, dataset: str, step: Step, work: Work, parents: ParentRuns = NO_PARENTS
) -> StepResult:
    """Run, resume or skip one step; see the package's docstring. ``work(directory, run)`` does it.

    The result of before stays in place until ``work`` has finished: see
    :mod:`ospo.steps.replace`. In several processes all come to the same decision from the same
    files, before the main one changes any.
    """
    directory = RUNS / dataset / step.name
    if distributed.is_main():
        settle(directory)
    distributed.wait_for_all()
    done = usable(directory, step)
    ready = {} if done else usable(attempt(directory), step)
    begun = read_state(attempt(directory), step.fingerprint) if step.resumable else {}
    distributed.wait_for_all()
    if ready and distributed.is_main():  # killed after the last line of work, before the renames
        replace(directory)
    distributed.wait_for_all()
    if state := done or ready:
        return _result(directory, dataset, step, state, skipped=True)
    if not distributed.is_main():
        distributed.wait_for_all()
        work(attempt(directory), tracking.SilentRun())
        distributed.wait_for_all()
        return _result(directory, dataset, step, {}, skipped=False)
    run_id = begun.get("run_id") if not begun.get("finished") else None
    state = _work(config, dataset, step, work, parents, run_id)
    replace(directory)
    distributed.wait_for_all()
    return _result(directory, dataset, step, state, skipped=False)


def usable(directory: Path, step: Step) -> dict[str, Any]:
    """The state of a finished and whole result of ``step`` in ``directory``; {} where there is
    none.
    """
    state = read_state(directory, step.fingerprint) if step.resumable else {}
    if not state.get("finished"):
        return {}
    if damage := step.damage(directory):
        LOGGER.warning("%s; the step is done again", damage)
        return {}
    return state


def _result(
    directory: Path, dataset: str, step: Step, state: Mapping[str, Any], skipped: bool
) -> StepResult:
    run_id, seconds = state.get("run_id", ""), state.get("seconds", 0.0)
    return StepResult(step.name, dataset, directory, step.fingerprint, run_id, skipped, seconds)


def _work(
    config: Config,
    dataset: str,
    step: Step,
    work: Work,
    parents: ParentRuns,
    run_id: str | None,
) -> dict[str, Any]:
    """Do the step in its attempt folder, in the MLflow run ``run_id`` or a new one; its state."""
    directory = RUNS / dataset / step.name
    new = attempt(directory) if run_id else begin_anew(directory)
    state: dict[str, Any] = {"fingerprint": step.fingerprint, "finished": False}
    started = time.monotonic()
    details = tracking.RunDetails(
        params=step.params,
        tags={"ospo.dataset": dataset, **step.tags, "ospo.fingerprint": step.fingerprint},
        data_md5=step.data_md5,
        parent_id=parents.mlflow,
        prefect_flow_run_id=parents.prefect,
        note=step.about,
    )
    with tracking.run(
        config,
        f"{step.name}-{dataset}",
        kind=step.kind,
        directory=new,
        run_id=run_id,
        details=details,
    ) as run:
        state["run_id"] = run.id
        write_json(new / "step.json", state)
        distributed.wait_for_all()
        with _full_disk_explained(directory):
            work(new, run)
    state |= {
        "run_id": run.id,
        "finished": True,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(new / "step.json", state)
    return state


@contextmanager
def _full_disk_explained(directory: Path) -> Iterator[None]:
    """A full disk is one clear line. What was half written is removed; the last good checkpoint
    stays.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        from ospo.training.callbacks import checkpoint_left, last_checkpoint

        last = last_checkpoint(attempt(directory) / "checkpoints")
        kept = checkpoint_left(last, "whole")
        raise OspoError(
            f"{directory}: the disk is full; {kept}. Fix: free some space (`ospo doctor` says how "
            "much there is), then run the same command again: it resumes from there"
        ) from error
