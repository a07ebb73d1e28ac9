"""The whole job: prepare, SFT, every RL algorithm, evaluation, registration, for the chosen
datasets.
"""

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.common import (
    Dataset,
    Overrides,
    ParamsFile,
    Preset,
    Seed,
    dataset_ready,
    flow_config,
    parent_runs,
    within,
)
from flows.evaluate import evaluate
from flows.presented import AS_IN_PARAMS, EVALUATION, carry_summary, run_name
from flows.train import sft, train_policy
from ospo import steps
from ospo.config import Config
from ospo.paths import RUNS
from ospo.reports.demo_table import policy_words


@task(name="register", task_run_name="register {dataset}", cache_policy=NO_CACHE)
def register(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Register the better policy, unless that very policy is registered already."""
    return steps.run_registration(config, dataset)


@flow(name="pipeline-dataset", flow_run_name=run_name("pipeline"))
def pipeline_dataset(
    dataset: Dataset,
    policy: Preset = AS_IN_PARAMS,
    seed: Seed = None,
    overrides: Overrides = None,
    params: ParamsFile = "params.yaml",
) -> dict[str, Any]:
    """The whole job for one dataset; returns its evaluation summary and what was registered.

    Args:
        dataset: a data set of params.yaml
        policy: preset; params.yaml: the one that its `policy` names
        seed: empty: the one in params.yaml
        overrides: KEY=VALUE pairs that replace values of params.yaml
        params: the parameter file
    """
    config = flow_config(params, overrides, policy, seed=seed)
    same: dict[str, Any] = {
        "policy": policy,
        "seed": seed,
        "overrides": overrides,
        "params": params,
    }
    with (
        dataset_ready(dataset),
        steps.pipeline_run(config, dataset, parent_runs()) as parent_run_id,
        within(parent_run_id),
    ):
        sft(dataset, **same)
        for algorithm in config.algorithms:
            train_policy(dataset, algorithm, **same)
        summary = evaluate(dataset, **same)
        registered = register(config, dataset)
    evaluation = RUNS / dataset / EVALUATION
    runs = {"pipeline": parent_run_id, EVALUATION: steps.read_state(evaluation)["run_id"]}
    words = (evaluation / "summary.md").read_text(encoding="utf-8")
    carry_summary(
        "pipeline",
        dataset,
        f"{_registered_text(registered)}\n\n{words}",
        runs,
        config,
        evaluation / "report.html",
    )
    return {"summary": summary, "registered": registered}


def _registered_text(registered: dict[str, Any]) -> str:
    """What became of the better policy, in one line of markdown."""
    aliases = " ".join(f"@{alias}" for alias in registered["aliases"]) or "no alias"
    text = f"**{registered['name']} version {registered['version']}** ({aliases})"
    if registered["same_as_sft"]:
        text += f" is {policy_words(registered)}"
    return f"{text}: {registered['decision']}" if registered["decision"] else text


@flow(name="pipeline", flow_run_name=run_name("pipeline"))
def pipeline(
    datasets: list[Dataset] | None = None,
    overrides: Overrides = None,
    params: ParamsFile = "params.yaml",
) -> dict[str, Any]:
    """The whole job for each dataset in turn.

    Args:
        datasets: empty: all of params.yaml
        overrides: KEY=VALUE pairs that replace values of params.yaml
        params: the parameter file
    """
    return {
        name: pipeline_dataset(name, overrides=overrides, params=params)
        for name in datasets or flow_config(params, overrides).datasets
    }
