"""DPO on pairs of the SFT policy's own completions (arXiv 2305.18290), by TRL's trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from trl import DPOConfig, DPOTrainer

from ospo.config import Config, Dpo
from ospo.data.dataset import PreparedData
from ospo.data.seen import seen_after
from ospo.errors import ConfigError
from ospo.models import autocast_bfloat16, load_policy, quiet
from ospo.training.callbacks import CheckpointMarker, finish, last_checkpoint, standard_callbacks, start_metrics
from ospo.training.offline import Completion, groups, in_shuffles, sample_offline
from ospo.training.ospo import Reward


def preference_pairs(completions: list[Completion], settings: Dpo) -> list[tuple[Completion, Completion]]:
    """(better, worse) of each group: its best and worst completion, where they differ by ``gap`` and the better one is
    above ``floor`` (the paper: 0.05 and 0.1)."""
    pairs = []
    for group in groups(completions):
        better = max(group, key=lambda completion: completion.reward)
        worse = min(group, key=lambda completion: completion.reward)
        if better.reward - worse.reward >= settings.gap and better.reward > settings.floor:
            pairs.append((better, worse))
    return pairs


class OwnIdsDPOTrainer(DPOTrainer):
    """DPOTrainer on the completions' own token ids, in the order they come: nothing is tokenised again."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """The data set as it is: prompt_ids, chosen_ids, rejected_ids."""
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def dpo_arguments(config: Config, out: Path) -> DPOConfig:
    """The trainer's arguments of ``config.preset.dpo``."""
    dpo, model = config.preset.dpo, config.preset.model
    gpu = torch.cuda.is_available()
    return DPOConfig(
        output_dir=str(out / "checkpoints"),
        max_steps=dpo.steps,
        per_device_train_batch_size=dpo.batch_size,
        gradient_accumulation_steps=dpo.gradient_accumulation,
        learning_rate=dpo.learning_rate,
        lr_scheduler_type="constant",
        beta=dpo.beta,
        max_length=None,
        optim=config.preset.rl.optimizer,
        bf16=autocast_bfloat16(model) or (gpu and model.dtype == "bfloat16"),
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        activation_checkpointing=config.preset.rl.gradient_checkpointing,
        save_strategy="steps",
        save_steps=config.preset.rl.checkpoint_every,
        save_total_limit=None,  # CheckpointMarker removes old ones
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,  # our own progress bar
        seed=config.seed,
        data_seed=config.seed,
    )


def train_dpo(
    config: Config,
    data: PreparedData,
    sft_model: Path,
    reward: Reward,
    out: Path,
    on_log: Callable[[int, dict[str, float]], None],
) -> None:
    """Train from the policy in ``sft_model``, which is also the reference; ``out/model`` is complete or absent.

    Goes on after a kill. Raises ConfigError where no two completions of a request differ enough.
    """
    from datasets import Dataset

    quiet()
    dpo = config.preset.dpo
    pairs = preference_pairs(sample_offline(config, data, sft_model, reward, out / "offline"), dpo)
    if not pairs:
        raise ConfigError(
            "params.yaml",
            f"presets.{config.policy}.dpo.gap",
            f"no two completions of one request differ by {dpo.gap} with the better above {dpo.floor}",
            "lower gap and floor, or raise rl.temperature",
        )
    chosen = in_shuffles(pairs, dpo.steps * dpo.batch_size * dpo.gradient_accumulation, config.seed)
    checkpoint = last_checkpoint(out / "checkpoints")
    start_metrics(out, checkpoint)
    network, tokenizer = load_policy(sft_model, config.preset.model, trainable=True)
    # An adapter is switched off for the reference; full weights need a second copy.
    reference = None if config.preset.model.lora_rank else load_policy(sft_model, config.preset.model)[0]
    trainer = OwnIdsDPOTrainer(
        model=network,
        ref_model=reference,
        args=dpo_arguments(config, out),
        train_dataset=Dataset.from_dict(
            {
                "prompt_ids": [better.prompt_ids for better, _ in chosen],
                "chosen_ids": [better.completion_ids for better, _ in chosen],
                "rejected_ids": [worse.completion_ids for _, worse in chosen],
            }
        ),
        processing_class=tokenizer,
    )
    for callback in [*standard_callbacks(trainer, f"dpo {data.name}", out, on_log), CheckpointMarker()]:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finish(trainer, tokenizer, config.preset.model, out, seen_after(data, sft_model))
