"""Reinforcement learning from the search reward: one set-up for every algorithm, so that only the
algorithm differs.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from ospo.config import Algorithm, Config
from ospo.data.dataset import PreparedData
from ospo.errors import ConfigError, InputError
from ospo.files import write_json
from ospo.policy.prompts import fit_messages
from ospo.policy.seen import seen_after
from ospo.policy.weights import load_policy, quiet
from ospo.reward.costs import ThriftyReward, known_words
from ospo.reward.credit import credit_engine
from ospo.training.algorithms import ONLINE, redistribution, with_segments
from ospo.training.callbacks import (
    CheckpointMarker,
    OnLog,
    OnTable,
    SampleTable,
    finish,
    last_checkpoint,
    standard_callbacks,
    start_metrics,
)
from ospo.training.collapse import CollapseStop
from ospo.training.completions import RolloutTable
from ospo.training.grpo_lambda import GRPOLambdaTrainer
from ospo.training.ospo import OSPOTrainer, Reward, SearchRewardFunction
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


def trainer_arguments(config: Config, algorithm: Algorithm, out: Path, processes: int = 1) -> Any:
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
    return GRPOConfig(**values | options | ONLINE[algorithm].arguments)


def resolved_arguments(arguments: Any, config: Config, algorithm: Algorithm) -> dict[str, Any]:
    """What the trainer really got, JSON-able: its arguments without machine paths, and how credit
    is used.
    """
    values = json.loads(arguments.to_json_string())
    for key in ("output_dir", "logging_dir"):
        values.pop(key, None)
    credit: dict[str, Any] = {"redistribution": "none"}
    if ONLINE[algorithm].credit:
        how = redistribution(config, algorithm)
        credit = with_segments(config, algorithm).credit.model_dump()
        credit |= {
            "redistribution": how.mode,
            "alpha": how.alpha,
            "clip": how.clip,
            "discount": how.discount,
        }
    costs = {name: getattr(config.preset.rl, name) for name in ("repeat_cost", "word_cost")}
    return {
        "algorithm": algorithm,
        "credit": credit,
        "reward": config.reward.model_dump() | costs,
        "trainer": values,
    }


def prompt_rows(data: PreparedData, count: int, seed: int) -> np.ndarray:
    """(count,) request rows of the training split in the order they are trained on: seeded
    shuffles, end to end.
    """
    rows = data.rows("train")
    if not len(rows):
        raise InputError(
            data.directory / "requests.parquet",
            "split",
            "holds no training request",
            "give the dataset more requests",
        )
    rng = np.random.default_rng([seed, 3])
    return np.concatenate([rng.permutation(rows) for _ in range(math.ceil(count / len(rows)))])[
        :count
    ]


def prompt_dataset(data: PreparedData, rows: np.ndarray, tokenizer: Any, max_tokens: int) -> Any:
    """Dataset of ``prompt`` (conversation) and ``row`` (request row), histories cut to fit
    ``max_tokens``.
    """
    from datasets import Dataset

    known: dict[int, list[dict[str, str]]] = {}
    for row in np.unique(rows).tolist():
        known[row], _ = fit_messages(data.requests[row], tokenizer, max_tokens)
    return Dataset.from_dict(
        {"prompt": [known[row] for row in rows.tolist()], "row": rows.tolist()}
    )


def build_trainer(
    config: Config,
    data: PreparedData,
    algorithm: Algorithm,
    sft_model: Path,
    reward: Reward,
    out: Path,
    on_log: OnLog,
    on_table: OnTable | None = None,
) -> OSPOTrainer:
    """A trainer ready to run ``algorithm`` from the policy in ``sft_model``;
    ``out/trainer_args.json`` is written.
    """
    from accelerate import PartialState

    quiet()
    rl = config.preset.rl
    processes = PartialState(cpu=not torch.cuda.is_available()).num_processes
    arguments = trainer_arguments(config, algorithm, out, processes)
    batch = batch_shape(config, processes)
    network, tokenizer = load_policy(sft_model, config.preset.model, trainable=True)
    generations = math.ceil(rl.steps * batch.accumulation / batch.steps_per_generation)
    rows = prompt_rows(data, generations * rl.prompts_per_step, config.seed)
    credits, how = ONLINE[algorithm].credit, redistribution(config, algorithm)
    value: Reward = reward
    if rl.repeat_cost or rl.word_cost:
        value = ThriftyReward(
            reward, rl.repeat_cost, rl.word_cost, known_words(data) if rl.word_cost else frozenset()
        )
    table = RolloutTable(
        out / "completions.parquet", [request.request_id for request in data.requests]
    )
    trainer_class = GRPOLambdaTrainer if algorithm == "grpo_lambda" else OSPOTrainer
    trainer = trainer_class(
        model=network,
        args=arguments,
        reward_funcs=SearchRewardFunction(value, tokenizer),
        train_dataset=prompt_dataset(data, rows, tokenizer, rl.max_prompt_tokens),
        processing_class=tokenizer,
        engine=credit_engine(with_segments(config, algorithm), value, added=how.mode == "to-go")
        if credits
        else None,
        redistribution=how,
        table=table,
    )
    trainer.share_prompts = rl.share_prompts
    callbacks = standard_callbacks(trainer, f"{algorithm} {data.name}", out, on_log)
    if on_table is not None:
        callbacks.append(SampleTable(table.sample, rl.table_every, on_table))
    for callback in [
        *callbacks,
        CheckpointMarker(before=table.write if trainer.is_world_process_zero() else None),
    ]:
        trainer.add_callback(callback)
    if trainer.is_world_process_zero():
        write_json(out / "trainer_args.json", resolved_arguments(arguments, config, algorithm))
    return trainer


def train_rl(
    config: Config,
    data: PreparedData,
    algorithm: Algorithm,
    sft_model: Path,
    reward: Reward,
    out: Path,
    on_log: OnLog,
    on_table: OnTable | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train with ``algorithm`` from the policy in ``sft_model``; ``out/model`` is complete at the
    end or absent.

    A run that was killed goes on from its last complete checkpoint: same prompts, same random
    numbers, same weights as if it had not been killed. ``on_log(step, metrics)`` is called once a
    step; the same lines go to ``out/metrics.jsonl``, every sampled completion to
    ``out/completions.parquet``. ``on_table(step, rows)`` gets some of the completions every
    ``table_every`` steps; ``callbacks`` see the trainer's events. A run that collapses is stopped
    (``out/collapse.json``) and leaves its last good policy.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(out / "checkpoints")
    start_metrics(out, checkpoint)
    trainer = build_trainer(config, data, algorithm, sft_model, reward, out, on_log, on_table)
    seen = seen_after(data, sft_model)  # what the warm start has seen, this policy has seen
    collapse = CollapseStop(config.preset.rl, config.preset.model, sft_model, out, seen)
    for callback in (collapse, *callbacks):
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.table is not None and trainer.is_world_process_zero():
        trainer.table.write()
    if trainer.is_world_process_zero() and collapse.settle():
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    else:
        finish(trainer, trainer.processing_class, config.preset.model, out, seen)
