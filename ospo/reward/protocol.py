"""What training asks of a reward: a value function with declared abilities, and its counters."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ospo.credit.values import Function, PlainValue, Value


@dataclass(frozen=True)
class Counts:
    """Texts asked for so far. hits: answered from memory; misses: computed."""

    hits: int = 0
    misses: int = 0


class Reward(Value):
    """A reward of search texts: ``reward(texts, rows) -> (B,)`` float64, with the abilities of
    :class:`ospo.credit.values.Value`, all of which a wrapper must define too.
    """

    @property
    @abstractmethod
    def counts(self) -> Counts:
        """How many texts were asked for, and how many of them were remembered."""


class PlainReward(PlainValue, Reward):
    """A function from texts to rewards, and nothing else known about it."""

    def __init__(self, function: Function):
        super().__init__(function)
        self._texts = 0

    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """The function's rewards (B,)."""
        self._texts += len(texts)
        return self.function(texts, rows)

    @property
    def counts(self) -> Counts:
        """Every text is computed."""
        return Counts(misses=self._texts)


def as_reward(reward: Reward | Function) -> Reward:
    """``reward`` itself, or a plain function with no ability declared."""
    return reward if isinstance(reward, Reward) else PlainReward(reward)
