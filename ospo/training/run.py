"""One training run: what it learns from, where it begins, where it writes, who listens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ospo.config import Config
from ospo.credit.values import Function
from ospo.data.dataset import PreparedData
from ospo.errors import InputError, OspoError
from ospo.policy.guard import Guard
from ospo.policy.kind import read_answer_kind, read_context
from ospo.policy.text import SEARCH_TEXTS, SearchText
from ospo.reward import Reward
from ospo.reward.answers import reward_of_answers

OnLog = Callable[[int, dict[str, float]], None]
OnTable = Callable[[int, list[dict[str, Any]]], None]


def ignore(step: int, metrics: dict[str, float]) -> None:
    """Listens to nothing; ``metrics.jsonl`` is written all the same."""


@dataclass(frozen=True)
class TrainingRun:
    """What every training function takes.

    config, data: parameters and prepared data. out: folder of the run; ``out/model`` is complete at
    the end or absent, and a killed run resumes from the checkpoints there. start: the policy
    directory that training begins from; None for SFT, which makes a new policy. reward: of search
    texts, ``reward(texts, rows) -> (B,)``; None for SFT that looks at no
    validation requests. on_log: called with (step, metrics) once per step; the same lines go to
    ``out/metrics.jsonl``. on_table: called with (step, rows), some of the step's completions, every
    ``table_every`` steps. callbacks: see the trainer's events.
    """

    config: Config
    data: PreparedData
    out: Path
    start: Path | None = None
    reward: Reward | Function | None = None
    on_log: OnLog = ignore
    on_table: OnTable | None = None
    callbacks: Sequence[TrainerCallback] = ()

    @property
    def policy(self) -> Path:
        """``start``. Raises OspoError where there is none, InputError where it was trained to give
        another kind of answers, or to read another number of hits: its first words would be of the
        wrong game.
        """
        if self.start is None:
            raise OspoError(f"{self.out}: no policy to begin from. Fix: name one as `start`")
        kind = read_answer_kind(self.start).kind
        if kind != self.config.answer:
            raise InputError(
                "params.yaml",
                "answer",
                f"is {self.config.answer}, but the policy in {self.start} was trained to {kind}",
                f"set answer: {kind}, or train the SFT policy again",
            )
        if (shown := read_context(self.start)) != self.config.context:
            raise InputError(
                "params.yaml",
                "context",
                f"is {self.config.context}, but the policy in {self.start} was trained to read "
                f"{shown} hits",
                f"set context: {shown}, or train the SFT policy again",
            )
        return self.start

    @property
    def rule(self) -> SearchText:
        """How answers become search texts (``config.answer``)."""
        return SEARCH_TEXTS[self.config.answer]

    @property
    def guard(self) -> Guard | None:
        """Where the trained policy's answers are used: one that is trained with
        ``training.only_with_history`` answers only requests that are like its training requests.
        """
        return Guard(needs="own") if self.config.training.only_with_history else None

    @property
    def scorer(self) -> Reward:
        """The reward of answers: ``reward`` of the search texts that they become, with its
        abilities declared. Raises OspoError where there is none.
        """
        return reward_of_answers(self.search_reward, self.rule, self.data.requests)

    @property
    def search_reward(self) -> Reward | Function:
        """``reward``. Raises OspoError where there is none."""
        if self.reward is None:
            raise OspoError(f"{self.out}: no reward to learn from. Fix: name one as `reward`")
        return self.reward
