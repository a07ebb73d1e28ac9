"""What a game is played with: the value of a text, and what else a value function declares.

A value function needs one thing: ``value(texts, rows) -> (B,)``. Three abilities make its credit
cheaper or more exact. Each is a property that a :class:`Value` must define and that is None where
the ability is missing, so that a wrapper cannot lose one by forgetting to forward it: a class that
leaves one out cannot be instantiated.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

Function = Callable[[Sequence[str], Sequence[int]], np.ndarray]
"""``function(texts, rows) -> (B,)`` float64; ``rows`` name the request that each text answers."""

Price = Callable[[Sequence[str]], np.ndarray]
"""``price(texts) -> (B,)`` float64: what the value takes off for the text itself."""


class CoalitionValues(Protocol):
    """Values of coalitions from the texts of their units, without reading a coalition's text."""

    def __call__(
        self, units: Sequence[Sequence[str]], rows: Sequence[int], masks: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """One (C_b,) float64 array per answer.

        units: the stripped segments of each answer (B lists of n_b). rows: the request of each
        answer (B). masks: coalitions of each answer, (C_b, n_b) bool. A coalition's value is that
        of its units joined by spaces.
        """
        ...


class PoolScores(Protocol):
    """The retriever scores behind a value, for estimators that infer values from scores."""

    def pool_scores(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """Scores (B, P) of the pool items of each text's request; padding scores −inf."""
        ...

    def measure(self, scores_MP: np.ndarray, row: int) -> np.ndarray:
        """(M,) float64: the value, before any price, of texts that score a request's pool so."""
        ...


class Value(ABC):
    """A value function with its abilities declared."""

    @abstractmethod
    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """Values (B,) float64 of texts under request rows: the very function that gives the
        terminal reward. It may remember values.
        """

    @property
    @abstractmethod
    def coalitions(self) -> CoalitionValues | None:
        """Coalition values from their parts, prices included: where scores add up over words."""

    @property
    @abstractmethod
    def pool(self) -> PoolScores | None:
        """Pool scores and the measure that turns them into values before prices."""

    @property
    @abstractmethod
    def price(self) -> Price | None:
        """What is taken off a text's measured value; None where nothing is."""


class PlainValue(Value):
    """A function from texts to numbers, and nothing else known about it."""

    coalitions = pool = price = None

    def __init__(self, function: Function):
        self.function = function

    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """The function's values."""
        return self.function(texts, rows)


def as_value(value: Value | Function) -> Value:
    """``value`` itself, or a plain function with no ability declared."""
    return value if isinstance(value, Value) else PlainValue(value)
