"""Training: SFT, the policy that every algorithm starts from, and RL from there; one step per flow
run.
"""

from typing import Literal

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.common import (
    Count,
    Dataset,
    Overrides,
    ParamsFile,
    Preset,
    Seed,
    dataset_ready,
    flow_config,
    parent_runs,
)
from flows.presented import AS_IN_PARAMS, run_name
from ospo import steps as job
from ospo.config import Algorithm, Config


@task(name="train", task_run_name="train {step} {dataset}", cache_policy=NO_CACHE)
def train_step(
    config: Config, dataset: Dataset, step: Literal["sft"] | Algorithm
) -> job.StepResult:
    """Train, resume or skip one step; an RL step brings its SFT policy up to date first."""
    if step == "sft":
        return job.run_sft(config, dataset, parent_runs())
    return job.run_rl(config, dataset, step, parent_runs())


def _trained(config: Config, dataset: Dataset, step: Literal["sft"] | Algorithm) -> str:
    """The step's MLflow run, trained on data that is up to date."""
    with dataset_ready(dataset):
        return train_step(config, dataset, step).run_id


# Each flow lists its parameters in full: Prefect makes the UI's form from the signature and the
# docstring.
@flow(name="sft", flow_run_name=run_name("sft"))
def sft(
    dataset: Dataset,
    policy: Preset = AS_IN_PARAMS,
    steps: Count = None,
    seed: Seed = None,
    overrides: Overrides = None,
    params: ParamsFile = "params.yaml",
) -> str:
    """Prepare one dataset and train its SFT policy; returns the MLflow run's id.

    Args:
        dataset: a data set of params.yaml
        policy: preset; params.yaml: the one that its `policy` names
        steps: optimizer steps; empty: what the preset says
        seed: empty: the one in params.yaml
        overrides: KEY=VALUE pairs that replace values of params.yaml
        params: the parameter file
    """
    return _trained(
        flow_config(params, overrides, policy, dataset, seed=seed, preset__sft__steps=steps),
        dataset,
        "sft",
    )


@flow(name="ospo", flow_run_name=run_name())
def train_policy(
    dataset: Dataset,
    algorithm: Algorithm = "ospo",
    policy: Preset = AS_IN_PARAMS,
    steps: Count = None,
    seed: Seed = None,
    overrides: Overrides = None,
    params: ParamsFile = "params.yaml",
) -> str:
    """Prepare one dataset and train one RL policy (and SFT before it where that is missing);
    returns the run's id.

    Args:
        dataset: a data set of params.yaml
        algorithm: ospo, with credit for each phrase, or one to compare it with
        policy: preset; params.yaml: the one that its `policy` names
        steps: optimizer steps; empty: what the preset says
        seed: empty: the one in params.yaml
        overrides: KEY=VALUE pairs that replace values of params.yaml
        params: the parameter file
    """
    return _trained(
        flow_config(params, overrides, policy, dataset, seed=seed, preset__rl__steps=steps),
        dataset,
        algorithm,
    )
