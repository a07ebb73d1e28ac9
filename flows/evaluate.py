"""Evaluation under the training retriever and under those never seen in training."""

from typing import Any

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
from flows.presented import AS_IN_PARAMS, EVALUATION, carry_summary, run_name
from ospo import steps
from ospo.config import Config
from ospo.files import read_json


@task(name="evaluate", task_run_name="evaluate {dataset}", cache_policy=NO_CACHE)
def evaluate_policies(config: Config, dataset: Dataset) -> steps.StepResult:
    """Evaluate every policy, or skip where nothing changed."""
    return steps.run_evaluation(config, dataset, parent_runs())


@flow(name="evaluate", flow_run_name=run_name("evaluate"))
def evaluate(
    dataset: Dataset,
    policy: Preset = AS_IN_PARAMS,
    max_requests: Count = None,
    seed: Seed = None,
    overrides: Overrides = None,
    params: ParamsFile = "params.yaml",
) -> dict[str, Any]:
    """Evaluate the trained policies of one dataset; returns the summary that the report is made of.

    Args:
        dataset: a data set of params.yaml
        policy: preset; params.yaml: the one that its `policy` names
        max_requests: held-out requests that are scored; empty: what params.yaml says
        seed: empty: the one in params.yaml
        overrides: KEY=VALUE pairs that replace values of params.yaml
        params: the parameter file
    """
    config = flow_config(
        params, overrides, policy, dataset, seed=seed, evaluation__max_requests=max_requests
    )
    with dataset_ready(dataset):
        result = evaluate_policies(config, dataset)
    summary = read_json(result.directory / "summary.json")
    words = (result.directory / "summary.md").read_text(encoding="utf-8")
    report = result.directory / "report.html"
    carry_summary(EVALUATION, dataset, words, {EVALUATION: result.run_id}, config, report)
    return summary
