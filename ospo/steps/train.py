"""Training steps: the SFT policy, and what an algorithm makes of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from ospo import tracking
from ospo.config import ALGORITHMS, Algorithm, Config
from ospo.errors import OspoError
from ospo.evaluation.selection import label
from ospo.files import read_json
from ospo.paths import PREPARED
from ospo.steps.inputs import log_prepared, prepared_md5, training_inputs
from ospo.steps.notes import about, log_training
from ospo.steps.parameters import parameters
from ospo.steps.step import NO_PARENTS, ParentRuns, Step, StepResult, policy_damage, run_step

if TYPE_CHECKING:
    from ospo.data.dataset import PreparedData
    from ospo.retrieval.base import Retriever
    from ospo.reward.search import SearchReward

SHOWN = 200  # completions in a run's table


def _log_policy(run: tracking.Recorder, config: Config, directory: Path) -> None:
    """The trained policy (adapter, or a small policy's whole weights) and the resolved
    configuration as artifacts.
    """
    run.log_artifact(directory / "model", "policy")
    run.log_dict("config.json", config.model_dump())


def sft_step(config: Config, dataset: str) -> Step:
    """What the SFT policy depends on."""
    return Step(
        name="sft",
        kind="sft",
        inputs=training_inputs(dataset),
        params=parameters(config, "sft", dataset),
        data_md5=prepared_md5(dataset),
        about=about("SFT, the policy that every algorithm starts from,", dataset, config),
        damage=policy_damage,
    )


def run_sft(config: Config, dataset: str, parents: ParentRuns = NO_PARENTS) -> StepResult:
    """Train the SFT policy every algorithm starts from."""

    def work(directory: Path, run: tracking.Recorder) -> None:
        from ospo.data.dataset import load_prepared
        from ospo.training.run import TrainingRun
        from ospo.training.sft import train_sft

        log_prepared(run, dataset, "sft")
        from ospo.evaluation.hits import with_hits

        built: dict[str, Retriever] = {}
        data = with_hits(config, load_prepared(PREPARED / dataset), built)
        looks = config.preset.sft.validate_every > 0
        reward = _search_reward(config, data, built) if looks else None
        train_sft(TrainingRun(config, data, directory, reward=reward, on_log=run.log_metrics))
        for name in ("validation.json", "attempts.json"):
            if (directory / name).is_file():
                run.log_artifact(directory / name)
        _log_policy(run, config, directory)
        log_training(run, directory, step.about)

    step = sft_step(config, dataset)
    return run_step(config, dataset, step, work, parents)


def algorithm_step(config: Config, dataset: str, algorithm: Algorithm, sft: str) -> Step:
    """What an algorithm's policy depends on; ``sft``: the fingerprint of the policy it starts from.

    The retriever and the reward count through their parameters and the source code.
    """
    params = parameters(config, algorithm, dataset) | {"algorithm": algorithm}
    return Step(
        name=algorithm,
        kind="rl",
        inputs=training_inputs(dataset) | {"sft": sft},
        params=params,
        data_md5=prepared_md5(dataset),
        about=about(f"{label(algorithm)}, trained from the SFT policy,", dataset, config),
        damage=policy_damage,
    )


def run_rl(
    config: Config, dataset: str, algorithm: Algorithm, parents: ParentRuns = NO_PARENTS
) -> StepResult:
    """Train with one algorithm from the SFT checkpoint, which is trained first where it is missing
    or stale.
    """
    if algorithm not in ALGORITHMS:
        raise OspoError(
            f"algorithm {algorithm!r} is not known. Fix: name one of {', '.join(ALGORITHMS)}"
        )
    sft = run_sft(config, dataset, parents)

    def work(directory: Path, run: tracking.Recorder) -> None:
        log_prepared(run, dataset, "rl")
        _train(config, dataset, algorithm, sft.model, directory, run)
        _log_credit(run, directory)
        _log_completions(run, directory)
        _log_policy(run, config, directory)
        log_training(run, directory, step.about)

    step = algorithm_step(config, dataset, algorithm, sft.fingerprint)
    return run_step(config, dataset, step, work, parents)


def _train(
    config: Config,
    dataset: str,
    algorithm: Algorithm,
    sft_model: Path,
    directory: Path,
    run: tracking.Recorder,
) -> None:
    from ospo.data.dataset import load_prepared
    from ospo.evaluation.hits import with_hits
    from ospo.training.run import TrainingRun
    from ospo.training.train import train

    def log_table(step: int, rows: list[dict[str, Any]]) -> None:
        run.log_table(f"completions/step-{step:05d}.json", rows)

    built: dict[str, Retriever] = {}
    data = with_hits(config, load_prepared(PREPARED / dataset), built)
    reward = _search_reward(config, data, built)
    train(
        TrainingRun(config, data, directory, sft_model, reward, run.log_metrics, log_table),
        algorithm,
    )


def _search_reward(
    config: Config, data: "PreparedData", built: "dict[str, Retriever] | None" = None
) -> "SearchReward":
    """What rankings of the training retriever are worth, as ``reward`` in params.yaml says.
    ``built``: the retrievers that are built already.
    """
    from ospo.retrieval import build_retriever
    from ospo.reward.measures import parse_measure
    from ospo.reward.search import SearchReward

    retriever = build_retriever(config.retrievers.training, config, data, built)
    settings = config.reward
    k, measure = parse_measure(settings.measure, settings.k)
    return SearchReward(retriever, data, k, settings.cache_texts, settings.whole, measure)


def _log_credit(run: tracking.Recorder, directory: Path) -> None:
    """Log which estimator was used: what ``credit.estimator`` came to with this reward."""
    file = directory / "trainer_args.json"  # the offline algorithms have none
    if file.is_file() and (used := read_json(file)["credit"].get("estimator_used")):
        run.log_params({"credit": {"estimator_used": used}})


def _log_completions(run: tracking.Recorder, directory: Path) -> None:
    for name in ("trainer_args.json", "completions.parquet", "collapse.json", "validation.json"):
        if (directory / name).is_file():
            run.log_artifact(directory / name)
    if (directory / "completions.parquet").is_file():
        # The last completions as a table that MLflow shows; all of them are in the file.
        run.log_table(
            "tables/completions.json",
            pl.read_parquet(directory / "completions.parquet", glob=False).tail(SHOWN),
        )
