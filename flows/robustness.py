"""The champions on fresh data: what the weekly schedule runs."""

from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.common import Overrides, ParamsFile, flow_config, lineage, one_at_a_time
from ospo import registry
from ospo.config import DATASETS, Config, Dataset
from ospo.steps import fresh


@task(name="champion on fresh data", task_run_name="champion of {dataset}", cache_policy=NO_CACHE)
def check_champion(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Score the champion of one dataset beside the raw query."""
    return fresh.run_fresh(config, dataset, lineage())


@flow(name="robustness")
def robustness(
    datasets: list[Dataset] | None = None,
    overrides: Overrides = None,
    params: ParamsFile = "params.yaml",
) -> dict[str, Any]:
    """Score each dataset's champion on fresh data; a dataset without a champion is passed over with
    a line.

    Args:
        datasets: empty: both
        overrides: KEY=VALUE pairs that replace values of params.yaml
        params: the parameter file
    """
    config = flow_config(params, overrides)
    results: dict[str, Any] = {}
    for dataset in datasets or DATASETS:
        if not any(
            registry.CHAMPION in item.aliases for item in registry.models(config, (dataset,))
        ):
            get_run_logger().warning("%s has no champion yet: passed over", dataset)
            continue
        with one_at_a_time(dataset):
            found = check_champion(config, dataset)
        create_markdown_artifact(
            key=f"robustness-{dataset}",
            markdown=fresh.markdown(found, dataset),
            description=f"The champion of {dataset} on fresh data",
        )
        results[dataset] = found
    return results
