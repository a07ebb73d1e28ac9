"""The evaluation step, and what the run of any evaluation records."""

from collections.abc import Mapping
from pathlib import Path

from ospo import tracking
from ospo.config import ALGORITHMS, Config
from ospo.files import atomic_file
from ospo.steps.inputs import PREPARED, data_md5, evaluation_source
from ospo.steps.step import NOBODY, Lineage, StepResult, finished, policy_directory, run_step


def log_evaluation(
    run: tracking.Run,
    config: Config,
    directory: Path,
    figures: Mapping[str, Mapping[str, float]],
    title: str = "",
) -> None:
    """Record an evaluation's files and ``figures`` ({policy: {retriever: nDCG@10}}, test split) in
    ``run``.

    Its page, and with a ``title`` its summary, are written beside its tables first.
    """
    from ospo.reports.evaluation import write_report
    from ospo.reports.wording import summary_markdown

    for policy, row in figures.items():
        run.log_metrics(
            0, {f"{policy}/{retriever}/ndcg_at_10": value for retriever, value in row.items()}
        )
    analysis = write_report(
        directory,
        directory / "report.html",
        resamples=config.evaluation.resamples,
        seed=config.seed,
        facts={"MLflow run": run.id},
    )
    if title:
        with atomic_file(directory / "summary.md") as temporary:
            temporary.write_text(summary_markdown(analysis, title), encoding="utf-8")
    for name in ("evaluation.parquet", "summary.json", "report.html"):
        run.log_artifact(directory / name)


def run_evaluation(config: Config, dataset: str, lineage: Lineage = NOBODY) -> StepResult:
    """Score every policy's search texts under the training retriever and each unseen one, on
    held-out requests.
    """
    policies = {name: finished(dataset, name) for name in config.policies}
    params = {
        "seed": config.seed,
        "evaluation": config.evaluation.model_dump(),
        "retrievers": config.retrievers.model_dump(),
        "reward": config.reward.model_dump(),
    }

    def work(directory: Path, run: tracking.Run) -> None:
        from ospo.data.dataset import load_prepared
        from ospo.evaluation.evaluate import evaluate

        models = {"raw": None} | {name: policy_directory(dataset, name) for name in policies}
        trained = [
            f"ospo train --dataset {dataset} --algorithm {name}"
            for name in policies
            if name in ALGORITHMS
        ]
        commands = [
            f"dvc repro vectors@{dataset}", f"ospo sft --dataset {dataset}", *trained,
            f"ospo evaluate --dataset {dataset}", f"ospo report --dataset {dataset}",
        ]  # fmt: skip
        data = load_prepared(PREPARED / dataset)
        figures = evaluate(config, data, models, directory, commands=commands)["test"]
        log_evaluation(run, config, directory, figures, title=dataset)
        rows = [{"policy": policy, **row} for policy, row in figures.items()]
        run.log_table("tables/ndcg_at_10.json", rows)
        run.log_dict("config.json", config.model_dump())

    inputs = {
        "data": data_md5(dataset),
        "source": evaluation_source(),
        "policies": {name: state["fingerprint"] for name, state in policies.items()},
    }
    return run_step(
        config,
        dataset,
        "evaluation",
        kind="evaluation",
        inputs=inputs,
        params=params,
        lineage=lineage,
        work=work,
    )
