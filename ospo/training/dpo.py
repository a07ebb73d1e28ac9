"""DPO on pairs of the SFT policy's own completions (arXiv 2305.18290), by TRL's trainer."""

from pathlib import Path
from typing import Any

from torch.utils.data import SequentialSampler
from trl import DPOConfig, DPOTrainer

from ospo.config import Config, Dpo
from ospo.policy.seen import seen_after
from ospo.policy.weights import load_policy, quiet
from ospo.training.offline import Completion, enough_of, groups, sample_offline
from ospo.training.run import TrainingRun
from ospo.training.trainer import run_trainer, update_arguments


def preference_pairs(
    completions: list[Completion], settings: Dpo
) -> list[tuple[Completion, Completion]]:
    """(better, worse) of each group: its best and worst completion, where they differ by ``gap``
    and the better one is above ``floor`` (the paper: 0.05 and 0.1).
    """
    pairs = []
    for group in groups(completions):
        better = max(group, key=lambda completion: completion.reward)
        worse = min(group, key=lambda completion: completion.reward)
        if better.reward - worse.reward >= settings.gap and better.reward > settings.floor:
            pairs.append((better, worse))
    return pairs


class OwnIdsDPOTrainer(DPOTrainer):
    """DPOTrainer on the completions' own token ids, in the order they come: nothing is tokenised
    again.
    """

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """The data set as it is: prompt_ids, chosen_ids, rejected_ids."""
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def dpo_arguments(config: Config, out: Path) -> DPOConfig:
    """The trainer's arguments of ``config.preset.dpo``."""
    dpo = config.preset.dpo
    return DPOConfig(
        **update_arguments(config, dpo, out),
        lr_scheduler_type="constant",
        beta=dpo.beta,
        max_length=None,
        optim=config.preset.rl.optimizer,
        activation_checkpointing=config.preset.rl.gradient_checkpointing,
    )


def train_dpo(run: TrainingRun) -> None:
    """Train from the policy in ``run.start``, which is also the reference.

    Resumes after a kill. Raises ConfigError where no two completions of a request differ enough.
    """
    from datasets import Dataset

    quiet()
    config, dpo = run.config, run.config.preset.dpo
    chosen = enough_of(
        preference_pairs(sample_offline(run), dpo),
        dpo,
        config,
        key="dpo.gap",
        lacking=f"no two completions of one request differ by {dpo.gap} with the better above "
        f"{dpo.floor}",
        fix="lower gap and floor, or raise rl.temperature",
    )
    network, tokenizer = load_policy(run.policy, config.preset.model, trainable=True)
    # The trainer copies an adapter for the reference; full weights need a second policy.
    lora = config.preset.model.lora_rank
    reference = None if lora else load_policy(run.policy, config.preset.model)[0]
    trainer = OwnIdsDPOTrainer(
        model=network,
        ref_model=reference,
        args=dpo_arguments(config, run.out),
        train_dataset=Dataset.from_dict(
            {
                "prompt_ids": [better.prompt_ids for better, _ in chosen],
                "chosen_ids": [better.completion_ids for better, _ in chosen],
                "rejected_ids": [worse.completion_ids for _, worse in chosen],
            }
        ),
        processing_class=tokenizer,
    )
    run_trainer(run, trainer, tokenizer, "dpo", seen_after(run.data, run.policy))
