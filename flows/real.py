"""The trained policies on raw files they never saw."""

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.common import Dataset, Overrides, ParamsFile, flow_config, one_at_a_time, parent_runs
from flows.presented import EVALUATION, carry_summary, run_name
from ospo import steps
from ospo.config import Config
from ospo.files import read_json
from ospo.reports.evaluation import publish_report
from ospo.steps.real import NAME, run_transfer


@task(
    name="evaluate on real rows",
    task_run_name="evaluate {dataset} on real rows",
    cache_policy=NO_CACHE,
)
def evaluate_real(config: Config, dataset: Dataset, raw: str) -> steps.StepResult:
    """Evaluate, or skip where nothing changed."""
    return run_transfer(config, dataset, raw, parent_runs())


@flow(name="real", flow_run_name=run_name("real"))
def real(
    dataset: Dataset, raw: str, overrides: Overrides = None, params: ParamsFile = "params.yaml"
) -> dict[str, Any]:
    """Evaluate one dataset's trained policies on raw files they never saw; returns the summary.

    Args:
        dataset: a data set of params.yaml
        raw: folder of raw files in the data set's format
        overrides: KEY=VALUE pairs that replace values of params.yaml
        params: the parameter file
    """
    config = flow_config(params, overrides, dataset=dataset)
    with one_at_a_time(dataset):
        result = evaluate_real(config, dataset, raw)
    publish_report(result.directory, f"{dataset}-{NAME}")
    words = (result.directory / "summary.md").read_text(encoding="utf-8")
    report = result.directory / "report.html"
    carry_summary("real", dataset, words, {EVALUATION: result.run_id}, config, report)
    return read_json(result.directory / "summary.json")
