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

import numpy as np
import polars as pl

from ospo.credit.values import CoalitionValues, Function, PoolScores, Price
from ospo.data.dataset import PreparedData
from ospo.policy.text import search_text
from ospo.reward.protocol import Counts, Reward, as_reward

_WORD = re.compile(r"\w+")


class PricedReward(Reward):
    """``reward`` less ``cost`` × the share of a text that ``search_text`` drops and ``word_cost`` ×
    its strange words.

    known: words that are not strange (:func:`known_words`); needed where ``word_cost`` is not 0.

    Prices are of what was written. Where answers add to the request
    (:class:`ospo.reward.answers.AnswerReward` within), a word that repeats the request earns
    nothing and costs nothing: it is known, and only what the answer says again is wasted.

    The same function gives terminal rewards and coalition values, so credit still sums up to the
    reward. Blank texts are worth what ``reward`` says. What the reward can do, this can: pool
    scores are passed on as they are, coalition values have their texts' prices taken off.
    """

    def __init__(
        self,
        reward: Reward | Function,
        cost: float,
        word_cost: float = 0.0,
        known: Set[str] = frozenset(),
    ):
        self.reward = as_reward(reward)
        self.cost, self.word_cost, self.known = cost, word_cost, known

    @property
    def counts(self) -> Counts:
        """The reward's."""
        return self.reward.counts

    @property
    def pool(self) -> PoolScores | None:
        """The reward's: scores know no prices."""
        return self.reward.pool

    @property
    def coalitions(self) -> CoalitionValues | None:
        """The reward's coalition values less the prices of the coalitions' texts."""
        return None if self.reward.coalitions is None else self._coalition_values

    @property
    def price(self) -> Price:
        """(B,) float64 ≥ 0, all that is taken off each text's measured reward."""
        return self._all_prices

    def _all_prices(self, texts: Sequence[str]) -> np.ndarray:
        prices, inner = self._own_prices(texts), self.reward.price
        return prices if inner is None else prices + inner(texts)

    def _own_prices(self, texts: Sequence[str]) -> np.ndarray:
        seen = [search_text(text) for text in texts]
        prices = self.cost * np.array(list(map(wasted_share, texts, seen)), np.float64)
        if self.word_cost:
            strange = [strange_words(text, self.known) for text in seen]
            prices += self.word_cost * np.array(strange, np.float64)
        return prices

    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """(B,) float64, at most 1; below 0 where a text costs more than it earns."""
        return np.asarray(self.reward(texts, rows), dtype=np.float64) - self._own_prices(texts)

    def _coalition_values(
        self, units: Sequence[Sequence[str]], rows: Sequence[int], masks: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        assert self.reward.coalitions is not None
        values = self.reward.coalitions(units, rows, masks)
        texts = [
            " ".join(unit for unit, present in zip(parts, mask, strict=True) if present)
            for parts, mask_CN in zip(units, masks, strict=True)
            for mask in np.asarray(mask_CN, dtype=bool).tolist()
        ]
        distinct = list(dict.fromkeys(texts))
        prices = dict(zip(distinct, self._own_prices(distinct).tolist(), strict=True))
        taken = np.array([prices[text] for text in texts], dtype=np.float64)
        bounds = np.cumsum([0, *map(len, masks)])
        return [value - taken[bounds[b] : bounds[b + 1]] for b, value in enumerate(values)]


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
