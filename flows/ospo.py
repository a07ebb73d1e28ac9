"""OSPO and the other RL algorithms, from the SFT checkpoint."""

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.common import Dataset, dvc_repro, flow_config, lineage
from ospo import steps
from ospo.config import Algorithm, Config


@task(name="train RL", task_run_name="train {algorithm} {dataset}", cache_policy=NO_CACHE)
def train_rl(config: Config, dataset: Dataset, algorithm: Algorithm, parent_run_id: str | None) -> steps.StepResult:
    """Train, resume or skip one RL step."""
    return steps.run_rl(config, dataset, algorithm, lineage(parent_run_id))


@flow(name="ospo", flow_run_name="{algorithm}-{dataset}")
def train_policy(
    dataset: Dataset,
    algorithm: Algorithm = "ospo",
    params: str = "params.yaml",
    overrides: list[str] | None = None,
    parent_run_id: str | None = None,
) -> str:
    """Prepare one dataset and train one RL policy (and SFT before it where that is missing); returns the run's id."""
    config = flow_config(params, overrides)
    if parent_run_id is None:  # within a pipeline the data is up to date already
        dvc_repro(dataset)
    with steps.dataset_lock(dataset):
        return train_rl(config, dataset, algorithm, parent_run_id).run_id
