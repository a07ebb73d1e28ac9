"""The evaluation step, and what the run of any evaluation records."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ospo import tracking
from ospo.config import ALGORITHMS, Config
from ospo.evaluation.selection import label
from ospo.files import atomic_file
from ospo.paths import PREPARED
from ospo.steps.inputs import data_md5, evaluation_inputs, log_prepared, prepared_md5
from ospo.steps.notes import about, describe_evaluation, evaluated
from ospo.steps.parameters import parameters
from ospo.steps.step import (
    NO_PARENTS,
    ParentRuns,
    Step,
    StepResult,
    finished,
    policy_directory,
    run_step,
)

if TYPE_CHECKING:
    from ospo.evaluation.analysis import Analysis


def log_evaluation(
    run: tracking.Recorder,
    config: Config,
    directory: Path,
    figures: Mapping[str, Mapping[str, float]],
    beginning: str,
    title: str = "",
) -> "Analysis":
    """Record an evaluation's files and ``figures`` ({policy: {retriever: nDCG@10}}, test split) in
    ``run``.

    ``beginning``: of the run's description. Its page, and with a ``title`` its summary, are written
    beside its tables first.
    """
    from ospo.reports.evaluation import write_report
    from ospo.reports.headline import summary_markdown

    for policy, row in figures.items():
        names = {name: tracking.record_name(f"{policy}/{name}/ndcg_at_10") for name in row}
        run.log_metrics(0, {names[name]: value for name, value in row.items()})
    analysis = write_report(
        directory,
        directory / "report.html",
        resamples=config.evaluation.resamples,
        seed=config.seed,
        facts={"MLflow run": run.id},
    )
    for control in analysis.controls:
        run.log_metrics(
            0, {f"control/{control.policy}/{control.retriever}/ndcg_at_10": control.mean}
        )
    if title:
        with atomic_file(directory / "summary.md") as temporary:
            temporary.write_text(summary_markdown(analysis, title), encoding="utf-8")
    for name in ("evaluation.parquet", "summary.json", "report.html"):
        run.log_artifact(directory / name)
    describe_evaluation(run, beginning, analysis)
    return analysis


def evaluation_step(config: Config, dataset: str, policies: Mapping[str, str]) -> Step:
    """What the evaluation depends on; ``policies``: name → fingerprint of the step that trained
    it.
    """
    inputs: dict[str, Any] = {"data": data_md5(dataset), "policies": dict(policies)}
    return Step(
        name="evaluation",
        kind="evaluation",
        inputs=inputs | evaluation_inputs(),
        params=parameters(config, "evaluation", dataset),
        data_md5=prepared_md5(dataset),
        about=about(f"Evaluation of {', '.join(map(label, policies))}", dataset, config),
    )


def run_evaluation(config: Config, dataset: str, parents: ParentRuns = NO_PARENTS) -> StepResult:
    """Score every policy's search texts under the training retriever and each unseen one, on
    held-out requests.
    """
    policies = {name: finished(dataset, name)["fingerprint"] for name in config.policies}

    def work(directory: Path, run: tracking.Recorder) -> None:
        from ospo.data.dataset import load_prepared
        from ospo.evaluation.evaluate import evaluate

        log_prepared(run, dataset, "evaluation")
        models = {name: policy_directory(dataset, name) for name in policies}
        data = load_prepared(PREPARED / dataset)
        commands = _commands(dataset, list(policies))
        figures = evaluate(config, data, models, directory, commands=commands)["test"]
        analysis = log_evaluation(run, config, directory, figures, step.about, title=dataset)
        rows = [{"policy": policy, **row} for policy, row in figures.items()]
        run.log_table("tables/ndcg_at_10.json", rows)
        run.log_dict("config.json", config.model_dump())
        evaluated(config, dataset, directory, analysis)

    step = evaluation_step(config, dataset, policies)
    return run_step(config, dataset, step, work, parents)


def _commands(dataset: str, policies: list[str]) -> list[str]:
    """What makes the evaluation again, for its report."""
    trained = [
        f"ospo train --dataset {dataset} --algorithm {name}"
        for name in policies
        if name in ALGORITHMS
    ]
    return [
        f"dvc repro vectors@{dataset}", f"ospo sft --dataset {dataset}", *trained,
        f"ospo evaluate --dataset {dataset}", f"ospo report --dataset {dataset}",
    ]  # fmt: skip
