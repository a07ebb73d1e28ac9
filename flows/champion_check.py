"""The champions on fresh data: what the weekly schedule runs."""

from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.common import Dataset, Overrides, ParamsFile, flow_config, one_at_a_time, parent_runs
from flows.presented import EVALUATION, carry_summary, run_name
from ospo import registry
from ospo.config import Config
from ospo.paths import RUNS
from ospo.steps import fresh
from ospo.steps.parameters import FRESH


@task(name="champion on fresh data", task_run_name="champion of {dataset}", cache_policy=NO_CACHE)
def check_dataset(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Score the champion of one dataset beside the raw query."""
    return fresh.run_fresh(config, dataset, parent_runs())


@flow(name="champion-check", flow_run_name=run_name("champion-check"))
def champion_check(
    datasets: list[Dataset] | None = None,
    overrides: Overrides = None,
    params: ParamsFile = "params.yaml",
) -> dict[str, Any]:
    """Score each dataset's champion on fresh data; a dataset without a champion is passed over with
    a line.

    Args:
        datasets: empty: all of params.yaml
        overrides: KEY=VALUE pairs that replace values of params.yaml
        params: the parameter file
    """
    results: dict[str, Any] = {}
    for dataset in datasets or flow_config(params, overrides).datasets:
        config = flow_config(params, overrides, dataset=dataset)
        if not any(
            registry.CHAMPION in item.aliases for item in registry.models(config, (dataset,))
        ):
            get_run_logger().warning("%s has no champion yet: passed over", dataset)
            continue
        with one_at_a_time(dataset):
            outcome = check_dataset(config, dataset)
        words, runs = fresh.markdown(outcome, dataset), {EVALUATION: outcome["run_id"]}
        report = RUNS / dataset / FRESH / "report.html"
        carry_summary("champion-check", dataset, words, runs, config, report)
        results[dataset] = outcome
    return results
