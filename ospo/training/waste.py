"""A price for text that the retriever never sees. Training only: evaluation scores nDCG alone.

Repeated and empty segments are dropped before retrieval, so they earn nothing; but nothing is also what they cost, and
a policy sampled at temperature 1 learns to go on writing ("dotted, dotted, dotted, …" up to the token limit), because
one more segment may help and never hurts. With a price the game itself says that a repeated phrase hurts: the credit
of each repetition is below zero.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ospo.reward import search_text


class ThriftyReward:
    """``reward`` less ``cost`` × the share of a text that ``search_text`` drops.

    The same function gives terminal rewards and coalition values, so credit still sums up the reward. Blank texts are
    worth what ``reward`` says. ``hits`` and ``misses`` are the reward's.
    """

    def __init__(self, reward: Any, cost: float):
        self.reward, self.cost = reward, cost

    @property
    def hits(self) -> int:
        """Texts answered from the reward's memo."""
        return self.reward.hits

    @property
    def misses(self) -> int:
        """Texts computed."""
        return self.reward.misses

    def price(self, texts: Sequence[str]) -> np.ndarray:
        """(B,) what is taken off each text's reward, in [0, cost]."""
        return np.array([self.cost * wasted_share(text) for text in texts], dtype=np.float64)

    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """(B,) float64 in [-cost, 1]."""
        return np.asarray(self.reward(texts, rows), dtype=np.float64) - self.price(texts)


def wasted_share(text: str) -> float:
    """Share of a text's characters that the retriever never sees, in [0, 1]; 0 for a blank text.

    Characters, not words: ",,,,," is waste too.
    """
    text = text.strip()
    return max(0.0, 1 - len(search_text(text)) / len(text)) if text else 0.0
