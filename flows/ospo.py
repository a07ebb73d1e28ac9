"""OSPO and the other RL algorithms, from the SFT checkpoint."""

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.common import Count, Overrides, ParamsFile, Preset, Seed, dataset_ready, flow_config, lineage
from ospo import steps
from ospo.config import Algorithm, Config, Dataset


@task(name="train RL", task_run_name="train {algorithm} {dataset}", cache_policy=NO_CACHE)
def train_rl(config: Config, dataset: Dataset, algorithm: Algorithm) -> steps.StepResult:
    """Train, resume or skip one RL step."""
    return steps.run_rl(config, dataset, algorithm, lineage())


@flow(name="ospo", flow_run_name="{algorithm}-{dataset}")
def train_policy(
    dataset: Dataset,
    algorithm: Algorithm = "ospo",
    policy: Preset = None,
    steps: Count = None,
    seed: Seed = None,
    overrides: Overrides = None,
    params: ParamsFile = "params.yaml",
) -> str:
    """Prepare one dataset and train one RL policy (and SFT before it where that is missing); returns the run's id.

    Args:
        dataset: esci or hm
        algorithm: ospo, with credit for each phrase, or one to compare it with
        policy: preset of params.yaml; empty: the one that its `policy` names
        steps: optimizer steps; empty: what the preset says
        seed: empty: the one in params.yaml
        overrides: KEY=VALUE pairs that replace values of params.yaml
        params: the parameter file
    """
    config = flow_config(params, overrides, policy, seed=seed, preset__rl__steps=steps)
    with dataset_ready(dataset):
        return train_rl(config, dataset, algorithm).run_id
