"""The reward of answers: a reward of search texts, and the rule by which an answer becomes one."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from ospo.credit.values import CoalitionValues, Function, PoolScores
from ospo.data.request import Request
from ospo.policy.text import REWRITE, SearchText
from ospo.reward.protocol import Counts, Reward, as_reward


def reward_of_answers(
    reward: Reward | Function, rule: SearchText, requests: Sequence[Request]
) -> Reward:
    """``reward`` (of search texts) as a reward of answers to ``requests`` under ``rule``.

    A rewrite is its own text, so its reward is ``reward`` itself.
    """
    if rule is REWRITE:
        return as_reward(reward)
    return AnswerReward(reward, rule, [request.query for request in requests])


class AnswerReward(Reward):
    """``reward`` of the search texts that answers to requests become.

    rule: how they become texts. queries: the request of each row, as the raw policy gives it. An
    answer that says nothing is worth what ``rule.base`` is worth, which for answers that add is the
    raw query's reward, to the bit. Coalitions: where ``reward`` scores a coalition from its parts,
    the request stands in every one of them and is no player. Pool scores are those of the texts.

    Raises ValueError for a ``reward`` with a price: prices are of what was written, so they go
    around this reward (:class:`ospo.reward.costs.PricedReward`); within, they would be of the
    request too.
    """

    price = None

    def __init__(self, reward: Reward | Function, rule: SearchText, queries: Sequence[str]):
        self.reward, self.rule, self.queries = as_reward(reward), rule, queries
        if self.reward.price is not None:
            raise ValueError("reward: has a price, which must be put around AnswerReward")

    def texts(self, answers: Sequence[str], rows: Sequence[int]) -> list[str]:
        """The search text of each answer."""
        queries = self.queries
        return [
            self.rule.text(queries[int(row)], answer)
            for answer, row in zip(answers, rows, strict=True)
        ]

    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """Rewards (B,) of answers ``texts`` under request rows ``rows``."""
        return self.reward(self.texts(texts, rows), rows)

    @property
    def counts(self) -> Counts:
        """The reward's."""
        return self.reward.counts

    @property
    def pool(self) -> PoolScores | None:
        """The reward's, of the answers' texts."""
        return None if self.reward.pool is None else _Pool(self, self.reward.pool)

    @property
    def coalitions(self) -> CoalitionValues | None:
        """The reward's, with the request in every coalition."""
        inner = self.reward.coalitions
        return None if inner is None else partial(self._coalition_values, inner)

    def _coalition_values(
        self,
        inner: CoalitionValues,
        units: Sequence[Sequence[str]],
        rows: Sequence[int],
        masks: Sequence[np.ndarray],
    ) -> list[np.ndarray]:
        with_base, with_mask = [], []
        for parts, row, mask_CN in zip(units, rows, masks, strict=True):
            query = self.queries[int(row)]
            with_base.append(
                [self.rule.base(query), *(self.rule.added(query, part) for part in parts)]
            )
            mask_CN = np.asarray(mask_CN, dtype=bool)
            with_mask.append(np.pad(mask_CN, ((0, 0), (1, 0)), constant_values=True))
        return inner(with_base, rows, with_mask)


class _Pool:
    """The pool scores behind an :class:`AnswerReward`."""

    def __init__(self, reward: AnswerReward, inner: PoolScores):
        self.reward, self.inner = reward, inner

    def pool_scores(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """Scores (B, P) of the answers' texts."""
        return self.inner.pool_scores(self.reward.texts(texts, rows), rows)

    def measure(self, scores_MP: np.ndarray, row: int) -> np.ndarray:
        """(M,) float64, the inner measure."""
        return self.inner.measure(scores_MP, row)
