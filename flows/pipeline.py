"""The whole job: prepare, SFT, every RL algorithm, evaluation, registration, for the chosen datasets."""

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.common import Dataset, dvc_repro, flow_config, lineage
from flows.evaluate import evaluate
from flows.ospo import train_policy
from flows.sft import sft
from ospo import steps
from ospo.config import Config


@task(name="register", task_run_name="register {dataset}", cache_policy=NO_CACHE)
def register(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Register the better policy, unless that very policy is registered already."""
    return steps.run_registration(config, dataset)


@flow(name="pipeline-dataset", flow_run_name="pipeline-{dataset}")
def pipeline_dataset(
    dataset: Dataset, params: str = "params.yaml", overrides: list[str] | None = None
) -> dict[str, Any]:
    """The whole job for one dataset; returns its evaluation summary and what was registered."""
    config = flow_config(params, overrides)
    dvc_repro(dataset)
    with steps.pipeline_run(config, dataset, lineage(None)) as parent_run_id:
        sft(dataset, params, overrides, parent_run_id)
        for algorithm in steps.ALGORITHMS:
            train_policy(dataset, algorithm, params, overrides, parent_run_id)
        summary = evaluate(dataset, params, overrides, parent_run_id)
        with steps.dataset_lock(dataset):
            registered = register(config, dataset)
    return {"summary": summary, "registered": registered}


@flow(name="pipeline")
def pipeline(
    datasets: list[Dataset] | None = None, params: str = "params.yaml", overrides: list[str] | None = None
) -> dict[str, Any]:
    """The whole job for each dataset in turn (both by default)."""
    return {dataset: pipeline_dataset(dataset, params, overrides) for dataset in datasets or ["esci", "hm"]}
