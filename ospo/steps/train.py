"""Training steps: the SFT policy, and what an algorithm makes of it."""

from pathlib import Path
from typing import Any

import polars as pl

from ospo import tracking
from ospo.config import ALGORITHMS, Algorithm, Config
from ospo.errors import OspoError
from ospo.steps.inputs import PREPARED, training_inputs
from ospo.steps.step import NOBODY, Lineage, StepResult, run_step

SHOWN = 200  # completions in a run's table


def _log_policy(run: tracking.Run, config: Config, directory: Path) -> None:
    """The trained policy (adapter, or a small policy's whole weights) and the resolved
    configuration as artifacts.
    """
    run.log_artifact(directory / "model", "policy")
    run.log_dict("config.json", config.model_dump())


def run_sft(config: Config, dataset: str, lineage: Lineage = NOBODY) -> StepResult:
    """Train the SFT policy every algorithm starts from."""
    preset = config.preset
    params = {
        "seed": config.seed,
        "policy": config.policy,
        "model": preset.model.model_dump(),
        "sft": preset.sft.model_dump(),
        "max_prompt_tokens": preset.rl.max_prompt_tokens,
    }

    def work(directory: Path, run: tracking.Run) -> None:
        from ospo.data.dataset import load_prepared
        from ospo.training.run import TrainingRun
        from ospo.training.sft import train_sft

        data = load_prepared(PREPARED / dataset)
        train_sft(TrainingRun(config, data, directory, on_log=run.log_metrics))
        _log_policy(run, config, directory)

    return run_step(
        config,
        dataset,
        "sft",
        kind="sft",
        inputs=training_inputs(dataset),
        params=params,
        lineage=lineage,
        work=work,
    )


def run_rl(
    config: Config, dataset: str, algorithm: Algorithm, lineage: Lineage = NOBODY
) -> StepResult:
    """Train with one algorithm from the SFT checkpoint, which is trained first where it is missing
    or stale.
    """
    if algorithm not in ALGORITHMS:
        raise OspoError(
            f"algorithm {algorithm!r} is not known. Fix: name one of {', '.join(ALGORITHMS)}"
        )
    sft = run_sft(config, dataset, lineage)
    preset = config.preset
    params: dict[str, Any] = {
        "seed": config.seed,
        "policy": config.policy,
        "algorithm": algorithm,
        "model": preset.model.model_dump(),
        "rl": preset.rl.model_dump(),  # off-line algorithms too: it sizes the budget of completions
        "reward": config.reward.model_dump(),
        "retriever": {"training": config.retrievers.training, "dtype": config.retrievers.dtype},
    }
    if not ALGORITHMS[algorithm].online:
        params[algorithm] = getattr(preset, algorithm).model_dump()
    elif ALGORITHMS[algorithm].credit:
        params["credit"] = config.credit.model_dump()

    def work(directory: Path, run: tracking.Run) -> None:
        from ospo.data.dataset import load_prepared
        from ospo.retrieval import build_retriever
        from ospo.reward.search import SearchReward
        from ospo.training.run import TrainingRun
        from ospo.training.train import train

        def log_table(step: int, rows: list[dict[str, Any]]) -> None:
            run.log_table(f"completions/step-{step:05d}.json", rows)

        data = load_prepared(PREPARED / dataset)
        retriever = build_retriever(config.retrievers.training, config, data)
        reward = SearchReward(retriever, data, config.reward.k, config.reward.cache_texts)
        learning = TrainingRun(
            config, data, directory, sft.model, reward, run.log_metrics, log_table
        )
        train(learning, algorithm)
        for name in ("trainer_args.json", "completions.parquet", "collapse.json"):
            if (directory / name).is_file():
                run.log_artifact(directory / name)
        if (directory / "completions.parquet").is_file():
            # The last completions as a table that MLflow shows; all of them are in the file.
            run.log_table(
                "tables/completions.json",
                pl.read_parquet(directory / "completions.parquet").tail(SHOWN),
            )
        _log_policy(run, config, directory)

    inputs = training_inputs(dataset) | {"sft": sft.fingerprint}
    return run_step(
        config,
        dataset,
        algorithm,
        kind="rl",
        inputs=inputs,
        params=params,
        lineage=lineage,
        work=work,
    )
