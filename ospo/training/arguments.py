"""How params.yaml becomes the arguments of TRL's trainers: the only place where it does."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ospo.config import Config
from ospo.config.algorithms import ALGORITHMS
from ospo.credit import CreditEngine
from ospo.errors import ConfigError
from ospo.training.algorithms import redistribution, with_segments
from ospo.training.trainer import common_arguments


@dataclass(frozen=True)
class Batch:
    """How one generation batch is cut up. All counts are completions.

    generation: sampled together, over all processes. per_device: in one forward pass of one
    process. accumulation: forward passes to one optimizer step.
    """

    generation: int
    per_device: int
    accumulation: int
    processes: int

    @property
    def steps_per_generation(self) -> int:
        """Forward passes of one process that one generation batch feeds."""
        return self.generation // (self.per_device * self.processes)


def batch_shape(config: Config, processes: int) -> Batch:
    """Cut ``prompts_per_step × generations`` completions up; ConfigError where they do not divide.

    With ``per_device_batch_size`` 0 a generation batch feeds exactly one optimizer step, split over
    the processes and over ``gradient_accumulation`` forward passes: the step is the same however it
    is split.
    """
    rl = config.preset.rl
    key = f"presets.{config.policy}.rl"
    generation = rl.prompts_per_step * rl.generations
    per_device = rl.per_device_batch_size
    if not per_device:
        per_device = generation // (processes * rl.gradient_accumulation)
    window = per_device * processes
    if not window or generation % window or (generation // processes) % rl.generations:
        raise ConfigError(
            "params.yaml",
            f"{key}.prompts_per_step",
            f"{generation} completions do not divide into {processes} processes x "
            f"{rl.gradient_accumulation} forward "
            f"passes x {per_device or 'any'} completions with whole groups of {rl.generations} on "
            "each process",
            "change prompts_per_step, gradient_accumulation or per_device_batch_size",
        )
    return Batch(generation, per_device, rl.gradient_accumulation, processes)


def trainer_arguments(config: Config, algorithm: str, out: Path, processes: int = 1) -> Any:
    """The resolved GRPOConfig of ``config.preset.rl``: the only place where params become trainer
    arguments.
    """
    from trl import GRPOConfig

    rl = config.preset.rl
    batch = batch_shape(config, processes)
    # A checkpoint between two generation batches would need the half-used batch kept with it.
    period = max(
        1, batch.steps_per_generation // math.gcd(batch.steps_per_generation, batch.accumulation)
    )
    scheduler = "constant_with_warmup" if rl.scheduler == "constant" and rl.warmup else rl.scheduler
    options: dict[str, Any] = {}
    if rl.use_vllm:
        options = {"use_vllm": True, "vllm_mode": rl.vllm_mode}
    if rl.vllm_mode == "server":
        options |= {"vllm_server_base_url": rl.vllm_server}
    values: dict[str, Any] = common_arguments(config, out) | {
        "max_steps": rl.steps,
        "per_device_train_batch_size": batch.per_device,
        "gradient_accumulation_steps": batch.accumulation,
        "generation_batch_size": batch.generation,
        "num_generations": rl.generations,
        "learning_rate": rl.learning_rate,
        "lr_scheduler_type": scheduler,
        "warmup_steps": rl.warmup,
        "weight_decay": rl.weight_decay,
        "optim": rl.optimizer,
        "beta": rl.beta,
        "temperature": rl.temperature,
        "max_completion_length": rl.max_completion_tokens,
        "loss_type": rl.loss_type,
        "scale_rewards": "none" if rl.loss_type == "dr_grpo" else "group",
        "importance_sampling_level": rl.importance_sampling_level,
        "num_iterations": 1,
        # The library turns checkpointing on by default; it trades a third more compute for memory
        # small models have.
        "activation_checkpointing": rl.gradient_checkpointing,
        "dataloader_num_workers": 0,
        "shuffle_dataset": False,  # prompt_rows fixes the order, also across a resume
        "save_steps": math.ceil(rl.checkpoint_every / period) * period,
    }
    return GRPOConfig(**values | options | dict(ALGORITHMS[algorithm].arguments))


def resolved_arguments(
    arguments: Any, config: Config, algorithm: str, engine: CreditEngine | None = None
) -> dict[str, Any]:
    """What the trainer really got, JSON-able: its arguments without machine paths, and how credit
    is used: ``credit.estimator_used`` is what ``credit.estimator`` came to.
    """
    values = json.loads(arguments.to_json_string())
    for key in ("output_dir", "logging_dir"):
        values.pop(key, None)
    credit: dict[str, Any] = {"redistribution": "none"}
    if ALGORITHMS[algorithm].credit:
        how = redistribution(config, algorithm)
        credit = with_segments(config, algorithm).credit.model_dump()
        credit |= {
            "redistribution": how.mode,
            "alpha": how.alpha,
            "clip": how.clip,
            "discount": how.discount,
            "estimator_used": engine.estimator_used if engine else "none",
        }
    rl = config.preset.rl
    costs = {"repeat_cost": rl.repeat_cost, "word_cost": rl.word_cost}
    return {
        "algorithm": algorithm,
        "credit": credit,
        "reward": config.reward.model_dump() | costs,
        "trainer": values,
    }
