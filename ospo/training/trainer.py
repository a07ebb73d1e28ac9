"""What trainers share: their arguments, and, for those that learn from written examples, a run with
resume.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ospo.config import Config, Updates
from ospo.policy.weights import autocast_bfloat16
from ospo.training.callbacks import (
    CheckpointMarker,
    OnLog,
    finish,
    last_checkpoint,
    standard_callbacks,
    start_metrics,
)


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
    trainer: Any,
    tokenizer: Any,
    config: Config,
    title: str,
    out: Path,
    on_log: OnLog,
    seen: Iterable[str],
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train to the end and write ``out/model``, which is complete or absent.

    A run that was killed goes on from its last whole checkpoint, with the same weights at the end.
    ``on_log(step, metrics)`` is called once a step; ``seen``: keys of the requests trained on;
    ``callbacks`` see the trainer's events.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(out / "checkpoints")
    start_metrics(out, checkpoint)
    for callback in [
        *standard_callbacks(trainer, title, out, on_log),
        CheckpointMarker(),
        *callbacks,
    ]:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finish(trainer, tokenizer, config.preset.model, out, seen)
