"""Phrase credit in anyone's TRL GRPOTrainer: their reward functions, their data set.

The value of a piece of a completion is what the trainer's own reward functions give for it, so
nothing else has to be written. :class:`PhraseCreditTrainer` is used as GRPOTrainer is; a trainer
that is a subclass already takes :class:`PhraseCreditMixin` before it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from trl import GRPOTrainer
from trl.trainer.utils import is_async_callable

from ospo.credit.engine import Credit, CreditEngine
from ospo.credit.segments import Kind
from ospo.credit.tokens import (
    Completions,
    Find,
    Redistribution,
    completion_advantages,
    credit_metrics,
    silent_groups,
    whole_text,
)


@dataclass(frozen=True)
class PhraseCredit:
    """What credit is computed for, and how it becomes advantages.

    how: the mode and its numbers. find: where the answer stands in a completion's text; the rest
    of the completion stays as it is in every value. segments, estimator, budget, seed: see
    :class:`ospo.credit.CreditEngine`; a completion costs at most ``budget`` rewards more, under
    to-go a few besides.
    """

    how: Redistribution = Redistribution("to-go")  # noqa: RUF009 (frozen)
    find: Find = whole_text
    segments: Kind = "phrases"
    estimator: str = "auto"
    budget: int = 32
    seed: int = 0


def refuse_erased_credit(args: Any) -> None:
    """Raise ValueError for settings of GRPOConfig under which a loss sees no token's advantage."""
    if args.importance_sampling_level != "token":
        raise ValueError(
            f"importance_sampling_level {args.importance_sampling_level!r} erases token credit: "
            "its ratio is one number per completion, so every token gets the mean advantage. Use "
            "'token'"
        )
    if args.loss_type in ("luspo", "vespo"):
        raise ValueError(
            f"loss_type {args.loss_type!r} weights whole sequences and erases token credit"
        )


@dataclass(frozen=True)
class _Batch:
    """This process's completions of one generation, as TRL hands them to reward functions.

    rewards_B: float32, NaN where no reward function gave one.
    """

    inputs: Sequence[dict[str, Any]]
    prompts: Sequence[Any]
    completions: Sequence[Any]
    ids: list[list[int]]
    rewards_B: Tensor


class PhraseCreditMixin:
    """Token advantages by phrase credit, to stand before GRPOTrainer or a subclass of it.

    credit: see :class:`PhraseCredit`. All other arguments are the trainer's own. Raises ValueError
    for settings under which credit would be lost or has no value function to ask: reward models,
    tools and environments, rewards scaled by batch or normalised one by one.
    """

    def __init__(self, *arguments: Any, credit: PhraseCredit = PhraseCredit(), **options: Any):
        super().__init__(*arguments, **options)
        self.credit = credit
        self._scored: _Batch | None = None
        _check(self)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """The trainer's own; what they are of is kept for the credit."""
        gathered = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)  # type: ignore[misc]
        start = self.accelerator.process_index * len(prompts)  # type: ignore[attr-defined]
        rewards_B = _total(self, gathered[start : start + len(prompts)])
        self._scored = _Batch(inputs, prompts, completions, list(completion_ids_list), rewards_B)
        return gathered

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """The trainer's own, with (B, T) advantages in place of (B,) while training."""
        out: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        batch, self._scored = self._scored, None
        if self.model.training and self.credit.how.mode != "none":  # type: ignore[attr-defined]
            assert batch is not None
            out["advantages"] = self._redistributed(batch, out)
        return out

    def _redistributed(self, batch: _Batch, out: dict[str, Any]) -> Tensor:
        credit = self.credit
        completions = Completions.read(batch.ids, self.processing_class, find=credit.find)  # type: ignore[attr-defined]
        # A prompt's completions stand one after another; one without a reward is in no group.
        scored_B = ~torch.isnan(batch.rewards_B).cpu().numpy()
        number_B = np.arange(len(completions))
        groups_B = np.where(scored_B, number_B // self.num_generations, -1 - number_B)  # type: ignore[attr-defined]
        rewards_B = torch.nan_to_num(batch.rewards_B)
        value = _Value(self, batch, completions, groups_B)
        engine = CreditEngine(
            value,
            segments=credit.segments,
            estimator=credit.estimator,
            budget=credit.budget,
            seed=credit.seed,
            added=credit.how.mode == "to-go",
        )
        silent_B = silent_groups(rewards_B, groups_B)
        credits: list[Credit] = engine.credit(
            completions.answers, value.rows, rewards_B.cpu().numpy(), silent_B
        )
        for name, figure in credit_metrics(completions, credits).items():
            self._metrics["train"][name].append(figure)  # type: ignore[attr-defined]
        return completion_advantages(
            credit.how,
            completions,
            out["completion_mask"],
            groups_B,
            rewards_B,
            credits,
            scale=self.scale_rewards != "none",  # type: ignore[attr-defined]
            sequence_B=out["advantages"],
        )


class PhraseCreditTrainer(PhraseCreditMixin, GRPOTrainer):
    """TRL's GRPOTrainer with phrase credit; ``credit=PhraseCredit(...)`` is the one argument
    more.
    """


class _Value:
    """The trainer's reward as a function of the answer's text, the rest of a completion kept."""

    def __init__(self, trainer: Any, batch: _Batch, completions: Completions, groups_B: np.ndarray):
        self.trainer, self.batch, self.completions = trainer, batch, completions
        self.around: list[tuple[str, str]] = []
        self.given: dict[tuple[str, int], int] = {}  # whole texts: the completion itself
        self.rows: list[int] = []  # completions that differ in their answers only share a number
        first: dict[tuple[int, str, str], int] = {}
        for b, (text, answer) in enumerate(
            zip(completions.texts, completions.answers, strict=True)
        ):
            start = completions.offsets[b]
            before, after = text[:start], text[start + len(answer) :]
            self.around.append((before, after))
            row = first.setdefault((int(groups_B[b]), before, after), b)
            self.rows.append(row)
            self.given.setdefault((answer, row), b)

    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """Rewards (B,) float64 of completions whose answers are ``texts``."""
        batch, tokenizer = self.batch, self.trainer.processing_class
        completions, ids = [], []
        for text, row in zip(texts, rows, strict=True):
            b = self.given.get((text, row))
            if b is not None:
                completions.append(batch.completions[b])
                ids.append(batch.ids[b])
                continue
            before, after = self.around[row]
            whole = before + text + after
            plain = isinstance(batch.completions[row], str)
            completions.append(whole if plain else [{"role": "assistant", "content": whole}])
            ids.append(tokenizer(whole, add_special_tokens=False)["input_ids"])
        left_out = ("prompt", "completion", "completion_ids")
        columns: dict[str, Any] = {
            key: [batch.inputs[row][key] for row in rows]
            for key in batch.inputs[0]
            if key not in left_out
        }
        columns |= {
            "prompts": [batch.prompts[row] for row in rows],
            "completions": completions,
            "completion_ids": ids,
            "trainer_state": self.trainer.state,
            "log_extra": _ignore,  # what is logged is about completions
            "log_metric": _ignore,
        }
        given = [_called(function, columns) for function in self.trainer.reward_funcs]
        table = [[float("nan") if r is None else float(r) for r in column] for column in given]
        rewards_BF = torch.tensor(table, dtype=torch.float32).T.contiguous()
        rewards_B = _total(self.trainer, rewards_BF.to(batch.rewards_B.device))
        return torch.nan_to_num(rewards_B).double().cpu().numpy()


def _ignore(*_: Any, **__: Any) -> None:
    """A logger that logs nothing."""


def _called(function: Any, columns: dict[str, Any]) -> Sequence[float | None]:
    if is_async_callable(function):
        return asyncio.run(function(**columns))
    return function(**columns)


def _total(trainer: Any, rewards_BF: Tensor) -> Tensor:
    """(B,) weighted sum as the trainer takes it; NaN where no function gave a reward."""
    total_B = (rewards_BF * trainer.reward_weights.to(rewards_BF.device)).nansum(dim=1)
    total_B[torch.isnan(rewards_BF).all(dim=1)] = torch.nan
    return total_B


def _check(trainer: Any) -> None:
    """Refuse what credit cannot be computed under."""
    if trainer.credit.how.mode == "none":
        return
    args = trainer.args
    refuse_erased_credit(args)
    for function in trainer.reward_funcs:
        if isinstance(function, nn.Module):
            raise ValueError(
                "reward_funcs: a reward model is no function of a text; wrap it into a reward "
                "function"
            )
    if trainer.tools or trainer.environment_factories is not None:
        raise ValueError("tools, environment_factory: phrase credit reads one answer, no dialogue")
    if args.scale_rewards == "batch":
        raise ValueError("scale_rewards 'batch': credit is compared in groups. Use 'group'")
    if args.multi_objective_aggregation != "sum_then_normalize":
        raise ValueError(
            f"multi_objective_aggregation {args.multi_objective_aggregation!r}: credit needs one "
            "reward per completion. Use 'sum_then_normalize'"
        )
