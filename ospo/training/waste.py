"""What words cost. Training only: evaluation scores nDCG alone.

Text that the retriever never sees earns nothing; without a price that is also what it costs, and a policy sampled at
temperature 1 learns to go on writing ("dotted, dotted, dotted, …" up to the token limit), because one more segment may
help and never hurts. Words that it does see may earn a little without saying anything: "dotted, dottedssic, dottedpla"
says "dotted" louder. With prices the game itself says so: the credit of a repetition is below zero, and a word that
the request does not hold has to earn its place.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ospo.reward import search_text

_WORD = re.compile(r"\w+")


class ThriftyReward:
    """``reward`` less ``cost`` × the share of a text that ``search_text`` drops, less ``word_cost`` × its added words.

    queries: the requests' texts by request row, whose words are free; needed where ``word_cost`` is not 0.

    The same function gives terminal rewards and coalition values, so credit still sums up the reward. Blank texts are
    worth what ``reward`` says. ``hits`` and ``misses`` are the reward's.
    """

    def __init__(self, reward: Any, cost: float, word_cost: float = 0.0, queries: Sequence[str] = ()):
        self.reward, self.cost, self.word_cost, self.queries = reward, cost, word_cost, queries

    @property
    def hits(self) -> int:
        """Texts answered from the reward's memo."""
        return self.reward.hits

    @property
    def misses(self) -> int:
        """Texts computed."""
        return self.reward.misses

    def price(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """(B,) float64 ≥ 0, what is taken off each text's reward."""
        seen = [search_text(text) for text in texts]
        prices = np.array([self.cost * _share(text, kept) for text, kept in zip(texts, seen, strict=True)], np.float64)
        if self.word_cost:
            added = [added_words(kept, self.queries[row]) for kept, row in zip(seen, rows, strict=True)]
            prices += self.word_cost * np.array(added, np.float64)
        return prices

    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """(B,) float64, at most 1; below 0 where a text costs more than it earns."""
        return np.asarray(self.reward(texts, rows), dtype=np.float64) - self.price(texts, rows)


def wasted_share(text: str) -> float:
    """Share of a text's characters that the retriever never sees, in [0, 1]; 0 for a blank text.

    Characters, not words: ",,,,," is waste too.
    """
    return _share(text, search_text(text))


def _share(text: str, seen: str) -> float:
    text = text.strip()
    return max(0.0, 1 - len(seen) / len(text)) if text else 0.0


def added_words(text: str, query: str) -> int:
    """How many words of ``text``, each time they stand there, are not among the words of ``query``, whatever case."""
    known = set(_WORD.findall(query.lower()))
    return sum(word not in known for word in _WORD.findall(text.lower()))
