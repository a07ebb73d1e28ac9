"""The whole job: prepare, SFT, every RL algorithm, evaluation, registration, for the chosen
datasets.
"""

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.beside import side_by_side
from flows.common import (
    Count,
    Dataset,
    Overrides,
    ParamsFile,
    Preset,
    Seed,
    data_is_ready,
    data_ready,
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
from ospo.tracking.facts import processors


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
    config = flow_config(params, overrides, policy, dataset, seed=seed)
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
    at_once: Count = None,
) -> dict[str, Any]:
    """The whole job for each dataset.

    Args:
        datasets: empty: all of params.yaml
        overrides: KEY=VALUE pairs that replace values of params.yaml
        params: the parameter file
        at_once: datasets side by side, each in a process of its own with its share of the
            processors; empty: one after the other
    """
    names = list(dict.fromkeys(datasets or flow_config(params, overrides).datasets))
    count = min(at_once or 1, len(names))
    if count < 2:
        return {name: pipeline_dataset(name, overrides=overrides, params=params) for name in names}
    with side_by_side(count, max(1, processors() // count)) as beside:
        for name in names:  # one trains while the data of the next are prepared
            data_ready(name)
            given = {"dataset": name, "overrides": overrides, "params": params}
            beside.start(name, _pipeline_beside, given)
        results = beside.results()
    return {name: results[name] for name in names}


def _pipeline_beside(dataset: Dataset, overrides: Overrides, params: ParamsFile) -> dict[str, Any]:
    """The whole job of one dataset whose data are up to date, in this process."""
    with data_is_ready():
        return pipeline_dataset(dataset, overrides=overrides, params=params)
