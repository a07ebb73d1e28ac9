"""Evaluation under the training retriever and under those never seen in training."""

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.common import Dataset, dvc_repro, flow_config, lineage
from ospo import steps
from ospo.config import Config
from ospo.files import read_json


@task(name="evaluate", task_run_name="evaluate {dataset}", cache_policy=NO_CACHE)
def evaluate_policies(config: Config, dataset: Dataset, parent_run_id: str | None) -> steps.StepResult:
    """Evaluate every policy, or skip where nothing changed."""
    return steps.run_evaluation(config, dataset, lineage(parent_run_id))


@flow(name="evaluate", flow_run_name="evaluate-{dataset}")
def evaluate(
    dataset: Dataset,
    params: str = "params.yaml",
    overrides: list[str] | None = None,
    parent_run_id: str | None = None,
) -> dict[str, Any]:
    """Evaluate the trained policies of one dataset; returns the summary that the report is made of."""
    config = flow_config(params, overrides)
    if parent_run_id is None:  # within a pipeline the data is up to date already
        dvc_repro(dataset)
    with steps.dataset_lock(dataset):
        result = evaluate_policies(config, dataset, parent_run_id)
    summary = read_json(result.directory / "summary.json")
    create_markdown_artifact(
        key=f"evaluation-{dataset}",
        markdown=(result.directory / "summary.md").read_text(encoding="utf-8"),
        description=f"Held-out nDCG@{config.reward.k} on {dataset}",
    )
    return summary
