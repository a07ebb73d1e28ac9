"""SFT: the policy that every algorithm starts from."""

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.common import Dataset, dvc_repro, flow_config, lineage
from ospo import steps
from ospo.config import Config


@task(name="train SFT", task_run_name="train SFT {dataset}", cache_policy=NO_CACHE)
def train_sft(config: Config, dataset: Dataset, parent_run_id: str | None) -> steps.StepResult:
    """Train, resume or skip the SFT step."""
    return steps.run_sft(config, dataset, lineage(parent_run_id))


@flow(name="sft", flow_run_name="sft-{dataset}")
def sft(
    dataset: Dataset,
    params: str = "params.yaml",
    overrides: list[str] | None = None,
    parent_run_id: str | None = None,
) -> str:
    """Prepare one dataset and train its SFT policy; returns the MLflow run's id."""
    config = flow_config(params, overrides)
    if parent_run_id is None:  # within a pipeline the data is up to date already
        dvc_repro(dataset)
    with steps.dataset_lock(dataset):
        return train_sft(config, dataset, parent_run_id).run_id
