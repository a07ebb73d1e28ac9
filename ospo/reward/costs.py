"""What useless text costs. Training only: evaluation scores nDCG alone.

Text that the retriever never sees earns nothing; without a price that is also what it costs, and a
policy sampled at temperature 1 learns to go on writing ("dotted, dotted, dotted, …" up to the token
limit), because one more segment may help and never hurts. Garbled words that it does see may earn a
little without saying anything: "dotted, dottedssic, dottedpla" says "dotted" louder to an encoder
of word pieces. With prices the game itself says so: the credit of a repetition, and of a word that
no product's text holds, is below zero.
"""

import re
from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import polars as pl

from ospo.data.dataset import PreparedData
from ospo.policy.text import search_text

_WORD = re.compile(r"\w+")


class ThriftyReward:
    """``reward`` less ``cost`` × the share of a text that ``search_text`` drops and ``word_cost`` ×
    its strange words.

    known: words that are not strange (:func:`known_words`); needed where ``word_cost`` is not 0.

    The same function gives terminal rewards and coalition values, so credit still sums up the
    reward. Blank texts are worth what ``reward`` says. ``hits`` and ``misses`` are the reward's.
    """

    def __init__(
        self, reward: Any, cost: float, word_cost: float = 0.0, known: Set[str] = frozenset()
    ):
        self.reward, self.cost, self.word_cost, self.known = reward, cost, word_cost, known

    @property
    def hits(self) -> int:
        """Texts answered from the reward's memo."""
        return self.reward.hits

    @property
    def misses(self) -> int:
        """Texts computed."""
        return self.reward.misses

    def price(self, texts: Sequence[str]) -> np.ndarray:
        """(B,) float64 ≥ 0, what is taken off each text's reward."""
        seen = [search_text(text) for text in texts]
        prices = self.cost * np.array(list(map(wasted_share, texts, seen)), np.float64)
        if self.word_cost:
            prices += self.word_cost * np.array(
                [strange_words(text, self.known) for text in seen], np.float64
            )
        return prices

    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """(B,) float64, at most 1; below 0 where a text costs more than it earns."""
        return np.asarray(self.reward(texts, rows), dtype=np.float64) - self.price(texts)


def wasted_share(text: str, seen: str | None = None) -> float:
    """Share of a text's characters that the retriever never sees, in [0, 1]; 0 for a blank text.

    Characters, not words: ",,,,," is waste too. seen: ``search_text(text)``, where the caller has
    it.
    """
    seen = search_text(text) if seen is None else seen
    text = text.strip()
    return max(0.0, 1 - len(seen) / len(text)) if text else 0.0


def strange_words(text: str, known: Set[str]) -> int:
    """How many words of ``text``, each time they stand there, are not ``known``, whatever case."""
    return sum(word not in known for word in _WORD.findall(text.lower()))


def known_words(data: PreparedData) -> frozenset[str]:
    """The words of all requests and of the items in their pools, lower case: what a search text can
    be about.
    """
    items = data.catalogue[np.unique(data.pools_RP[data.pools_RP >= 0]).tolist()]
    texts = [items[name] for name in ("text", "category", "colour", "brand", "group")]
    texts.append(pl.Series([request.query for request in data.requests], dtype=pl.String))
    found = pl.concat(
        [
            column.cast(pl.String).str.to_lowercase().str.extract_all(r"\w+").explode()
            for column in texts
        ]
    )
    return frozenset(found.drop_nulls().unique().to_list())
