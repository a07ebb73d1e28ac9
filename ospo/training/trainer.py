"""What trainers share: their arguments, and, for those that learn from written examples, a run with
resume.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ospo.config import Config, Updates
from ospo.distributed import by_main
from ospo.policy.weights import autocast_bfloat16
from ospo.training.best import BestPolicy
from ospo.training.callbacks import (
    CheckpointMarker,
    finish,
    last_checkpoint,
    standard_callbacks,
    start_metrics,
)
from ospo.training.run import TrainingRun


def common_arguments(config: Config, out: Path) -> dict[str, Any]:
    """Arguments that are the same for every trainer here; checkpoints go to ``out/checkpoints``."""
    gpu, model = torch.cuda.is_available(), config.preset.model
    return {
        "output_dir": str(out / "checkpoints"),
        "bf16": autocast_bfloat16(model) or (gpu and model.dtype == "bfloat16"),
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
        "save_strategy": "steps",
        "save_steps": config.preset.rl.checkpoint_every,
        "save_total_limit": None,  # CheckpointMarker removes old ones
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would show an average in place of NaN
        "report_to": "none",
        "disable_tqdm": True,  # our own progress bar
        "seed": config.seed,
        "data_seed": config.seed,
    }


def update_arguments(config: Config, updates: Updates, out: Path) -> dict[str, Any]:
    """The common arguments and those of ``updates``, for trainers that learn from written
    examples.
    """
    return common_arguments(config, out) | {
        "max_steps": updates.steps,
        "per_device_train_batch_size": updates.batch_size,
        "gradient_accumulation_steps": updates.gradient_accumulation,
        "learning_rate": updates.learning_rate,
    }


def run_trainer(
    run: TrainingRun,
    trainer: Any,
    tokenizer: Any,
    title: str,
    seen: Iterable[str],
    best: BestPolicy | None = None,
) -> None:
    """Train to the end and write ``run.out/model``, which is complete or absent.

    A killed run resumes from its last whole checkpoint, with the same weights at the end. ``seen``:
    keys of the requests trained on. ``best``: looks at the policy and says whether an earlier one
    than the last is the result; a run that it ends without a result leaves no model.
    """
    run.out.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(run.out / "checkpoints")
    start_metrics(run.out, checkpoint)
    title = f"{title} {run.data.name}"
    callbacks = standard_callbacks(trainer, title, run.out, run.on_log)
    looks = [best] if best else []
    for callback in [*callbacks, *looks, CheckpointMarker(), *run.callbacks]:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if best and by_main(lambda: best.lost or best.settle()):
        shutil.rmtree(run.out / "checkpoints", ignore_errors=True)
        return
    config = run.config
    finish(
        trainer,
        tokenizer,
        config.preset.model,
        run.out,
        seen,
        config.answer,
        run.guard,
        config.context,
    )
