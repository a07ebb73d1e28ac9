"""OSPO: GRPO whose sequence advantage is redistributed over tokens by the credit of the phrases
they stand in.

A small subclass of TRL's GRPOTrainer that overrides two methods. GRPO is the same trainer with
redistribution "none". Loss, clipping, KL and loss types are the library's: its loss takes (B, T)
advantages as well as (B,).
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import nanstd

from ospo.credit.advantages import EPSILON
from ospo.credit.alignment import token_spans
from ospo.credit.engine import Credit, CreditEngine
from ospo.credit.tokens import Redistribution, Rollouts, credit_metrics, token_advantages
from ospo.policy.prompts import extract_answer, opens_thinking
from ospo.training.completions import RolloutTable
from ospo.training.shared_prompts import SharedPromptsMixin

Reward = Callable[[Sequence[str], Sequence[int]], np.ndarray]


class SearchRewardFunction:
    """The search reward as TRL's reward function: completion ids → nDCG of their answers, kept for
    the credit.

    The text is decoded from the completion's own ids, without special tokens, so that rewards,
    segments and token spans speak of the same characters.
    """

    __name__ = "ndcg"

    def __init__(self, reward: Reward, tokenizer: Any):
        self.reward, self.tokenizer = reward, tokenizer
        self.thinking = opens_thinking(tokenizer)
        self.last: Rollouts | None = None
        self.seconds = 0.0

    def __call__(self, *, completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        """Rewards in [0, 1], one a completion. ``row``: the dataset's column of request rows."""
        started = time.perf_counter()
        decoded = [token_spans(ids, self.tokenizer) for ids in completion_ids]
        found = [extract_answer(text, self.thinking) for text, _ in decoded]
        answers = [answer for answer, _ in found]
        values = np.asarray(self.reward(answers, row), dtype=np.float64)
        self.last = Rollouts(
            texts=[text for text, _ in decoded],
            spans=[spans for _, spans in decoded],
            answers=answers,
            offsets=[offset for _, offset in found],
            rows=list(row),
            values=values,
        )
        self.seconds = time.perf_counter() - started
        return values.tolist()


class KeepStep(TrainerCallback):
    """Restores the trainer's count of forward passes on resume: TRL counts from 0 and would sample
    out of turn.
    """

    def __init__(self, trainer: "OSPOTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the count from the optimizer steps done."""
        self.trainer._step = state.global_step * args.gradient_accumulation_steps


class OSPOTrainer(SharedPromptsMixin, GRPOTrainer):
    """GRPOTrainer with credit-weighted token advantages.

    engine: credit of answers' segments; None for redistribution "none". table: takes every sampled
    completion. The one reward function must be a SearchRewardFunction. Raises ValueError for
    settings that would lose token credit.
    """

    def __init__(
        self,
        *,
        engine: CreditEngine | None = None,
        redistribution: Redistribution = Redistribution(),  # noqa: B008 (frozen)
        table: RolloutTable | None = None,
        **arguments: Any,
    ):
        if (engine is None) != (redistribution.mode == "none"):
            raise ValueError(
                "a redistribution needs a credit engine, and an engine a redistribution other than "
                "none"
            )
        args = arguments["args"]
        if engine is not None and args.importance_sampling_level != "token":
            raise ValueError(
                f"importance_sampling_level {args.importance_sampling_level!r} erases token "
                "credit: its ratio is one "
                "number a completion, so every token gets the mean advantage. Use 'token'"
            )
        if engine is not None and args.loss_type in ("luspo", "vespo"):
            raise ValueError(
                f"loss_type {args.loss_type!r} weights whole sequences and erases token credit"
            )
        function = arguments["reward_funcs"]
        if not isinstance(function, SearchRewardFunction):
            raise ValueError(
                "reward_funcs must be one SearchRewardFunction: credit needs to know the game"
            )
        self.reward_function = function
        self.engine, self.redistribution = engine, redistribution
        self.table = table
        self._gathered: Tensor | None = None
        super().__init__(**arguments)
        self.add_callback(KeepStep(self))

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """TRL's rewards, (B × processes, 1); kept, because a group's std is needed again."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._gathered = rewards
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's rollouts, with (B, T) advantages in place of (B,) while training; evaluation is
        left as it is.
        """
        if not self.model.training:  # type: ignore[union-attr]
            return super()._generate_and_score_completions(inputs)
        cache = self.reward_function.reward
        hits, misses = getattr(cache, "hits", 0), getattr(cache, "misses", 0)
        started = time.perf_counter()
        out = super()._generate_and_score_completions(inputs)
        scored = time.perf_counter()
        rollouts = self.reward_function.last
        if rollouts is None or self._gathered is None:
            raise RuntimeError(
                "the reward function was not called: rewards did not come from these completions"
            )
        sequence_B = out["advantages"]
        credits: list[Credit] | None = None
        if self.engine is not None:
            std_B = self._group_std(len(rollouts.answers))
            credits = self.engine.credit(
                rollouts.answers, rollouts.rows, rollouts.values, (std_B == 0).cpu().numpy()
            )
            out["advantages"] = token_advantages(
                self.redistribution,
                sequence_B,
                std_B if self.scale_rewards != "none" else torch.where(std_B > 0, 1 - EPSILON, 0.0),
                rollouts,
                credits,
                out["completion_mask"],
                self.num_generations or 1,
            )
        seconds = {"reward": self.reward_function.seconds, "credit": time.perf_counter() - scored}
        seconds["generate"] = scored - started - seconds["reward"]
        self._record(rollouts, sequence_B, credits, seconds)
        calls = getattr(cache, "hits", 0) - hits + getattr(cache, "misses", 0) - misses
        if calls:
            self._metrics["train"]["cache_hit_rate"].append(
                (getattr(cache, "hits", 0) - hits) / calls
            )
        return out

    def _group_std(self, local: int) -> Tensor:
        """(B,) std of the rewards of each local completion's group, as TRL computes it; exactly 0
        where all equal.
        """
        group = self.num_generations
        assert self._gathered is not None
        assert group is not None
        groups_GK = self._gathered[:, 0].view(-1, group)
        std_G = nanstd(groups_GK, dim=1)
        std_G = torch.where(
            (groups_GK == groups_GK[:, :1]).all(dim=1), torch.zeros_like(std_G), std_G
        )
        start = self.accelerator.process_index * local
        return std_G.repeat_interleave(group)[start : start + local]

    def _record(
        self,
        rollouts: Rollouts,
        sequence_B: Tensor,
        credits: list[Credit] | None,
        seconds: dict[str, float],
    ) -> None:
        metrics = self._metrics["train"]
        for name, value in seconds.items():
            metrics[f"seconds/{name}"].append(value)
        price = getattr(self.reward_function.reward, "price", None)
        priced_B = rollouts.values + price(rollouts.answers) if price else rollouts.values
        metrics["ndcg"].append(float(priced_B.mean()))
        metrics["empty_answers"].append(
            float(np.mean([not answer.strip() for answer in rollouts.answers]))
        )
        if credits is not None:
            for name, value in credit_metrics(rollouts, credits).items():
                metrics[name].append(value)
        if self.table is None:
            return
        rows = [
            {
                "row": rollouts.rows[b],
                "answer": rollouts.answers[b],
                "completion": rollouts.texts[b],
                "reward": float(rollouts.values[b]),
                "advantage": float(sequence_B[b]),
                "segments": credits[b].segmentation.units
                if credits and not credits[b].skipped
                else [],
                "credit": credits[b].phi_N.tolist() if credits and not credits[b].skipped else [],
                "empty_value": credits[b].empty_value if credits else None,
            }
            for b in range(len(rollouts.rows))
        ]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            rows = gather_object(rows)
        self.table.add(self.state.global_step + 1, rows)
