"""The MLflow run above a dataset's steps."""

from collections.abc import Iterator
from contextlib import contextmanager

from ospo import tracking
from ospo.config import Config
from ospo.files import sha256_json, write_json
from ospo.steps.inputs import data_md5, source_hash
from ospo.steps.step import NOBODY, RUNS, Lineage, read_state


@contextmanager
def pipeline_run(config: Config, dataset: str, lineage: Lineage = NOBODY) -> Iterator[str]:
    """The MLflow parent run of a dataset's whole job; yields its id.

    A pipeline interrupted and started again with the same data and parameters goes on in the same
    parent run.
    """
    tracking.sync(config, RUNS / dataset)
    directory = RUNS / dataset / "pipeline"
    params = config.model_dump(
        include={"seed", "policy", "retrievers", "reward", "credit", "evaluation"}
    )
    inputs = {
        "data": data_md5(dataset),
        "source": source_hash(("",)),
        "preset": config.preset.model_dump(),
    }
    fingerprint = sha256_json({"inputs": inputs, "params": params})
    with tracking.run(
        config,
        f"pipeline-{dataset}",
        kind="pipeline",
        directory=directory,
        run_id=read_state(directory, fingerprint).get("run_id"),
        params=params,
        tags={"ospo.dataset": dataset},
        data_md5={dataset: tracking.dataset_digest(data_md5(dataset))},
        prefect_flow_run_id=lineage.prefect_run_id or None,
    ) as run:
        write_json(directory / "step.json", {"fingerprint": fingerprint, "run_id": run.id})
        yield run.id
