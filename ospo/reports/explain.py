"""One search text explained: each phrase's credit, its share of the difference to the raw query,
what leaving it out does, and where the target ranks.

``ospo.reports.explain_page`` shows it, in a terminal or as a page.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ospo.config import Config
from ospo.credit import coalition_text
from ospo.data.dataset import PreparedData, Request
from ospo.errors import InputError
from ospo.evaluation.changes import LostWords, additions, changes
from ospo.policy.text import REWRITE, SearchText
from ospo.retrieval.base import Retriever
from ospo.reward.answers import reward_of_answers
from ospo.reward.credit import credit_engine
from ospo.reward.search import SearchReward

BUDGET = 1024  # exact for ten phrases: one text may cost what a training step of texts may not
TOP = 10


@dataclass(frozen=True)
class Phrase:
    """A phrase: its credit φ over no text (of answers that add: over the raw query), whether all
    its words stand in the request, its share of the difference to the raw query (0 where kept), the
    reward without it, and the target's rank without it (1-based, in the pool).
    """

    text: str
    credit: float
    kept: bool
    change: float
    reward_without: float
    rank_without: int


@dataclass(frozen=True)
class Item:
    """An item of the ranking under the whole text."""

    item_id: str
    title: str
    gain: float


@dataclass(frozen=True)
class Explanation:
    """All that is shown of one search text. Rewards are nDCG@k; ``rank`` is the target's place
    among ``pool`` items.

    The phrases' credits sum to ``reward`` − ``empty_reward``. Their changes, those of the ``lost``
    words of the request and ``form`` (order, repeats, punctuation) sum to ``reward`` −
    ``raw_reward`` (:mod:`ospo.evaluation.changes`). ``base``: the request as it stands in a text
    that only adds to it, before the phrases; such a text's credit is against the raw query, whose
    reward is then ``empty_reward``. "" elsewhere. ``estimator``: how the credit was computed.
    """

    dataset: str
    request_id: str
    query: str
    history: tuple[str, ...]
    target: Item
    retriever: str
    k: int
    text: str
    base: str
    phrases: tuple[Phrase, ...]
    lost: tuple[LostWords, ...]
    form: float
    reward: float
    empty_reward: float
    raw_reward: float
    rank: int
    pool: int
    coalitions: int
    estimator: str
    top: tuple[Item, ...]

    @property
    def rewritten(self) -> bool:
        """Whether the text is another than the raw query, so that comparing them says
        something.
        """
        return self.text != self.query

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def find_request(data: PreparedData, request: str) -> int:
    """Row of a request by its id, else by its query (the first one with it). Raises InputError for
    neither.
    """
    for row, known in enumerate(data.requests):
        if known.request_id == request:
            return row
    for row, known in enumerate(data.requests):
        if known.query.strip().lower() == request.strip().lower():
            return row
    example = data.requests[0].request_id if data.requests else "none, the dataset is empty"
    raise InputError(
        data.directory / "requests.parquet",
        "request_id",
        f"no request has the id or the query {request!r:.80}",
        f"name one of its {len(data.requests)} ids, for example {example}",
    )


def explain(
    config: Config,
    data: PreparedData,
    retriever: Retriever,
    request: str,
    text: str | None = None,
    rule: SearchText = REWRITE,
) -> Explanation:
    """Explain search text ``text`` (default: the raw query) for a request under an indexed
    ``retriever``.

    rule: what the answer behind the text is. Where it adds to the request, its phrases are what the
    text adds, and the request stands before them; a text that adds nothing is the raw query, whose
    own phrases are explained. request: a request id, or a request's query. Credit is exact for up
    to ten phrases, estimated beyond. Raises InputError for an unknown request.
    """
    row = find_request(data, request)
    asked: Request = data.requests[row]
    text = asked.query if text is None else text
    if rule.keeps_request:  # only what is added is explained; nothing added: the raw query
        added = rule.added(asked.query, text)
        text, rule = (added, rule) if added else (asked.query, REWRITE)
    search = SearchReward(retriever, data, config.reward.k, config.reward.cache_texts)
    reward = reward_of_answers(search, rule, data.requests)
    budget = max(BUDGET, config.credit.budget)
    engine = credit_engine(config, reward, estimator="auto", budget=budget, language=data.language)
    (credit,) = engine.credit([text], [row])
    seg = credit.segmentation
    if rule.keeps_request:
        change = additions(rule, asked.query, credit)
    else:
        (change,) = changes(
            search, [asked.query], [text], [seg.units], [row], budget=budget, seed=config.seed
        )
    texts = [text, *(coalition_text(seg, mask) for mask in ~np.eye(len(seg), dtype=bool))]
    values = reward(texts, [row] * len(texts))
    target = data.item_ids.index(asked.target_id)
    said = [rule.text(asked.query, t) for t in texts] if rule.keeps_request else texts
    orders = _rankings(search.pool_scores(said, [row] * len(said)), data.pools_RP[row])
    ranks = [int(np.flatnonzero(order == target)[0]) + 1 for order in orders]
    gains = dict(zip(data.pools_RP[row].tolist(), data.gains_RP[row].tolist(), strict=True))
    columns = (credit.phi_N.tolist(), change.kept_N, change.change_N, values[1:].tolist())
    phrases = tuple(Phrase(*one) for one in zip(seg.units, *columns, ranks[1:], strict=True))
    return Explanation(
        dataset=data.name,
        request_id=asked.request_id,
        query=asked.query,
        history=tuple(", ".join(filter(None, (p.name, p.type, p.colour))) for p in asked.history),
        target=_item(data, target, gains[target]),
        retriever=retriever.name,
        k=config.reward.k,
        text=rule.text(asked.query, text) if rule.keeps_request else text,
        base=rule.base(asked.query),
        phrases=phrases,
        lost=change.lost,
        form=change.form,
        reward=credit.total,
        empty_reward=credit.empty_value,
        raw_reward=change.raw,
        rank=ranks[0],
        pool=len(orders[0]),
        coalitions=credit.evaluations,
        estimator=credit.estimator,
        top=tuple(_item(data, int(item), gains[int(item)]) for item in orders[0][:TOP]),
    )


def _rankings(scores_BP: np.ndarray, pool_P: np.ndarray) -> list[np.ndarray]:
    """Catalogue rows of the pool, best first, as the measure ranks them: equal scores in pool
    order.
    """
    order_BP = np.argsort(-scores_BP, axis=1, kind="stable")
    return [pool_P[order][pool_P[order] >= 0] for order in order_BP]


def _item(data: PreparedData, row: int, gain: float) -> Item:
    return Item(data.item_ids[row], data.catalogue["title"][row], float(gain))
