"""OSPO: GRPO whose sequence advantage is redistributed over tokens by the credit of the phrases
they stand in.

A small subclass of TRL's GRPOTrainer that overrides two methods. GRPO is the same trainer with
redistribution "none". Loss, clipping, KL and loss types are the library's: its loss takes (B, T)
advantages as well as (B,).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather, gather_object
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import nanstd

from ospo.credit.advantages import EPSILON
from ospo.credit.alignment import token_spans
from ospo.credit.engine import Credit, CreditEngine
from ospo.credit.tokens import Completions, Redistribution, credit_metrics, token_advantages
from ospo.credit.values import Function
from ospo.policy.prompts import ANSWER_CLOSE, extract_answer, opens_thinking
from ospo.reward import Reward, as_reward
from ospo.training.completions import CompletionTable
from ospo.training.random_state import RandomState
from ospo.training.shared_prompts import SharedPromptsMixin


@dataclass(frozen=True)
class Scored:
    """This process's completions of one generation batch, with their rewards.

    rows: request row of each. rewards_B: float64, before TRL rounds them to float32. seconds: wall
    time of decoding and scoring them.
    """

    completions: Completions
    rows: list[int]
    rewards_B: np.ndarray
    seconds: float


def read_completions(
    completion_ids: Sequence[Sequence[int]], tokenizer: Any, thinking: bool = False
) -> Completions:
    """Completions decoded from their own ids, without special tokens, and their answers.

    Rewards, segments and token spans then speak of the same characters. ``thinking``: whether the
    prompt leaves a thought open (:func:`ospo.policy.prompts.opens_thinking`).
    """
    texts, spans, answers, offsets, closings = [], [], [], [], []
    for ids in completion_ids:
        text, spans_T = token_spans(list(ids), tokenizer)
        answer, offset = extract_answer(text, thinking)
        end = offset + len(answer)
        close = text.find(ANSWER_CLOSE, end)
        texts.append(text)
        spans.append(spans_T)
        answers.append(answer)
        offsets.append(offset)
        closings.append(text[end : close + len(ANSWER_CLOSE)] if close >= 0 else "")
    return Completions(texts, spans, answers, offsets, closings)


class SearchRewardFunction:
    """The reward as TRL's reward function: completion ids → rewards of their answers."""

    __name__ = "ndcg"

    def __init__(self, reward: Reward | Function, tokenizer: Any):
        self.reward, self.tokenizer = as_reward(reward), tokenizer
        self.thinking = opens_thinking(tokenizer)

    def score(self, completion_ids: Sequence[Sequence[int]], rows: Sequence[int]) -> Scored:
        """The completions and what their answers earn for request rows ``rows``."""
        started = time.perf_counter()
        completions = read_completions(completion_ids, self.tokenizer, self.thinking)
        rewards_B = np.asarray(self.reward(completions.answers, rows), dtype=np.float64)
        return Scored(completions, list(rows), rewards_B, time.perf_counter() - started)

    def __call__(self, *, completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        """Rewards, at most 1, one per completion. ``row``: the dataset's column of request rows."""
        return self.score(completion_ids, row).rewards_B.tolist()


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
        table: CompletionTable | None = None,
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
        self._batch: tuple[Scored, Tensor] | None = None
        self._step_start: tuple[int, RandomState] | None = None  # steps done, and the state then
        super().__init__(**arguments)
        self.add_callback(KeepStep(self))

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """Rewards of all processes' completions, (B × processes, 1) float32, as TRL's.

        TRL would call the same reward function and keep nothing but the numbers. Credit needs the
        completions they are of and their group's std, which the calling method takes from here.
        """
        scored = self.reward_function.score(completion_ids_list, [row["row"] for row in inputs])
        device = self.accelerator.device
        local_B1 = torch.tensor(scored.rewards_B, dtype=torch.float32, device=device)[:, None]
        gathered = gather(local_B1)
        self._batch = scored, gathered
        return gathered

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's completions, with (B, T) advantages in place of (B,) while training; evaluation is
        left as it is.
        """
        if not self.model.training:  # type: ignore[union-attr]
            return super()._generate_and_score_completions(inputs)
        if self._step % self.args.gradient_accumulation_steps == 0:
            self._step_start = self.state.global_step, RandomState.now()
        before = self.reward_function.reward.counts
        started = time.perf_counter()
        out = super()._generate_and_score_completions(inputs)
        sampled = time.perf_counter()
        assert self._batch is not None
        (scored, gathered), self._batch = self._batch, None
        sequence_B = out["advantages"]
        credits: list[Credit] | None = None
        if self.engine is not None:
            std_B = self._group_std(gathered, len(scored.completions))
            credits, out["advantages"] = self._redistribute(
                self.engine, scored, sequence_B, std_B, out["completion_mask"]
            )
        seconds = {"reward": scored.seconds, "credit": time.perf_counter() - sampled}
        seconds["generate"] = sampled - started - seconds["reward"]
        self._record(scored, sequence_B, credits, seconds)
        after = self.reward_function.reward.counts
        if asked := after.hits - before.hits + after.misses - before.misses:
            self._metrics["train"]["cache_hit_rate"].append((after.hits - before.hits) / asked)
        return out

    def save_before_failed_step(self) -> None:
        """A checkpoint of the steps done, after one that could not get its rewards.

        No weight has changed since; the random state is put back to where the step began, so that a
        resumed run draws the same completions again. Nothing is written where no step is done yet.
        In several processes the others still wait for the failed one: only the last regular
        checkpoint is left then.
        """
        if (
            self._step_start is None
            or not self.state.global_step
            or self.accelerator.num_processes > 1
        ):
            return
        done, random_state = self._step_start
        if (
            done == self.state.global_step
        ):  # else it failed after the step, with nothing drawn since
            random_state.restore()
        self._save_checkpoint(self.model, trial=None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _redistribute(
        self, engine: CreditEngine, scored: Scored, sequence_B: Tensor, std_B: Tensor, mask: Tensor
    ) -> tuple[list[Credit], Tensor]:
        """Credit of the answers, and (B, T) advantages; groups with equal rewards are left out."""
        answers, silent_B = scored.completions.answers, (std_B == 0).cpu().numpy()
        credits = engine.credit(answers, scored.rows, scored.rewards_B, silent_B)
        if self.scale_rewards == "none":  # then advantages are in units of the reward
            std_B = torch.where(std_B > 0, 1 - EPSILON, 0.0)
        # A prompt's completions stand one after another, whole groups in each process.
        groups_B = np.arange(len(answers)) // (self.num_generations or 1)
        advantages_BT = token_advantages(
            self.redistribution, credits, scored.completions, mask, groups_B, sequence_B, std_B
        )
        return credits, advantages_BT

    def _group_std(self, gathered: Tensor, local: int) -> Tensor:
        """(B,) std of the rewards of each local completion's group, as TRL computes it; exactly 0
        where all are equal.
        """
        group = self.num_generations
        assert group is not None
        groups_GK = gathered[:, 0].view(-1, group)
        std_G = nanstd(groups_GK, dim=1)
        equal_G = (groups_GK == groups_GK[:, :1]).all(dim=1)
        std_G = torch.where(equal_G, torch.zeros_like(std_G), std_G)
        start = self.accelerator.process_index * local
        return std_G.repeat_interleave(group)[start : start + local]

    def _record(
        self,
        scored: Scored,
        sequence_B: Tensor,
        credits: list[Credit] | None,
        seconds: dict[str, float],
    ) -> None:
        metrics, answers = self._metrics["train"], scored.completions.answers
        for name, value in seconds.items():
            metrics[f"seconds/{name}"].append(value)
        price = self.reward_function.reward.price
        ndcg_B = scored.rewards_B if price is None else scored.rewards_B + price(answers)
        metrics["ndcg"].append(float(ndcg_B.mean()))
        metrics["empty_answers"].append(float(np.mean([not answer.strip() for answer in answers])))
        if credits is not None:
            for name, value in credit_metrics(scored.completions, credits).items():
                metrics[name].append(value)
        if self.table is None:
            return
        rows = [
            {
                "row": scored.rows[b],
                "answer": answers[b],
                "completion": scored.completions.texts[b],
                "reward": float(scored.rewards_B[b]),
                "advantage": float(sequence_B[b]),
                "segments": credits[b].segmentation.units
                if credits and not credits[b].skipped
                else [],
                "credit": credits[b].phi_N.tolist() if credits and not credits[b].skipped else [],
                "empty_value": credits[b].empty_value if credits else None,
            }
            for b in range(len(answers))
        ]
        if self.accelerator.num_processes > 1:
            rows = gather_object(rows)
        self.table.add(self.state.global_step + 1, rows)
