"""The MLflow run above a dataset's steps."""

from collections.abc import Iterator
from contextlib import contextmanager

from ospo import tracking
from ospo.config import Config
from ospo.evaluation.selection import label
from ospo.files import sha256_json, write_json
from ospo.paths import RUNS
from ospo.steps.inputs import data_md5, prepared_md5, source_hash
from ospo.steps.notes import about, pipeline_note
from ospo.steps.parameters import parameters
from ospo.steps.step import NO_PARENTS, ParentRuns, read_state


@contextmanager
def pipeline_run(config: Config, dataset: str, parents: ParentRuns = NO_PARENTS) -> Iterator[str]:
    """The MLflow parent run of a dataset's whole job; yields its id.

    A pipeline interrupted and started again with the same data and parameters resumes the same
    parent run.
    """
    tracking.sync(config, RUNS / dataset)
    directory = RUNS / dataset / "pipeline"
    params = parameters(config, "pipeline", dataset)
    inputs = {"data": data_md5(dataset), "source": source_hash(("",))}
    fingerprint = sha256_json({"inputs": inputs, "params": params})
    names = " and ".join(label(name) for name in config.algorithms)
    beginning = about(f"The whole job (SFT, {names}, evaluation, registration)", dataset, config)
    details = tracking.RunDetails(
        params=params,
        tags={"ospo.dataset": dataset},
        data_md5=prepared_md5(dataset),
        prefect_flow_run_id=parents.prefect,
        note=beginning,
    )
    with tracking.run(
        config,
        f"pipeline-{dataset}",
        kind="pipeline",
        directory=directory,
        run_id=read_state(directory, fingerprint).get("run_id"),
        details=details,
    ) as run:
        write_json(directory / "step.json", {"fingerprint": fingerprint, "run_id": run.id})
        yield run.id
        run.describe(pipeline_note(config, dataset, beginning))
