"""SFT: the policy that every algorithm starts from."""

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.common import Count, Overrides, ParamsFile, Preset, Seed, dataset_ready, flow_config, lineage
from ospo import steps
from ospo.config import Config, Dataset


@task(name="train SFT", task_run_name="train SFT {dataset}", cache_policy=NO_CACHE)
def train_sft(config: Config, dataset: Dataset) -> steps.StepResult:
    """Train, resume or skip the SFT step."""
    return steps.run_sft(config, dataset, lineage())


@flow(name="sft", flow_run_name="sft-{dataset}")
def sft(
    dataset: Dataset,
    policy: Preset = None,
    steps: Count = None,
    seed: Seed = None,
    overrides: Overrides = None,
    params: ParamsFile = "params.yaml",
) -> str:
    """Prepare one dataset and train its SFT policy; returns the MLflow run's id.

    Args:
        dataset: esci or hm
        policy: preset of params.yaml; empty: the one that its `policy` names
        steps: optimizer steps; empty: what the preset says
        seed: empty: the one in params.yaml
        overrides: KEY=VALUE pairs that replace values of params.yaml
        params: the parameter file
    """
    config = flow_config(params, overrides, policy, seed=seed, preset__sft__steps=steps)
    with dataset_ready(dataset):
        return train_sft(config, dataset).run_id
