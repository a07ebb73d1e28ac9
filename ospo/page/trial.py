"""One request tried: the raw query's results beside those of one or two rewrites, with the credit
of every phrase.
"""

from dataclasses import dataclass, replace

import numpy as np

from ospo.credit import Segmentation, coalition_text, get_estimator, segment
from ospo.credit.segments import join_repeats
from ospo.data.request import Request
from ospo.page.asked import Asked, AskedError, fingerprint, history_text
from ospo.page.policies import Choice
from ospo.page.shop import Loaded, Shop
from ospo.policy.prompts import clean
from ospo.policy.text import REWRITE, SearchText, search_text
from ospo.retrieval.base import checked_search
from ospo.reward.credit import credit_engine
from ospo.reward.search import SearchReward

SHOWN = 10  # results of a list
DEPTH = 100  # results of the catalogue that are looked through for where an item stood before
BUDGET = 128  # coalitions: exact for seven phrases
MAX_SEGMENTS = 12


@dataclass(frozen=True)
class Hit:
    """A result. ``rank`` from 1; ``before``: its rank under the raw query, None where it was not
    among those looked through. ``gain``, ``label``: None and "" where it was not judged.
    ``leaves``: of the raw query's list, whether it is not among the rewrite's results.
    """

    rank: int
    title: str
    attributes: str
    gain: float | None
    label: str
    before: int | None = None
    leaves: bool = False

    @property
    def moved(self) -> int | None:
        """Ranks upward against the raw query; None where it is new."""
        return None if self.before is None else self.before - self.rank


@dataclass(frozen=True)
class Phrase:
    """A phrase of a rewrite. ``credit``: its Owen-Shapley value in nDCG@k, None where nothing is
    judged or it is off. ``changes``: of the first results, how many are others without it, None
    where it is off.
    """

    place: int
    text: str
    on: bool
    credit: float | None
    changes: int | None


@dataclass(frozen=True)
class Side:
    """A rewrite and what it finds. ``answer``: the text whose phrases are shown, ``base`` what
    stands before them and is no player; ``text``: what is searched, ``automatic`` what the policy
    itself says. ``start``: the reward that credits begin from.
    """

    choice: Choice
    automatic: str
    answer: str
    base: str
    text: str
    edited: bool
    phrases: tuple[Phrase, ...]
    estimator: str
    ndcg: float | None
    start: float
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Trial:
    """A request with the raw query's results and those of the rewrites. ``row``: of the prepared
    request whose judgements hold, None where nothing is judged. ``scope``: where was searched.
    """

    request: Request
    history: str
    row: int | None
    key: str
    scope: str
    k: int
    pool: int
    raw: Side
    sides: tuple[Side, ...]


def request_of(asked: Asked, loaded: Loaded) -> tuple[Request, int | None]:
    """The request that is asked for, and its row where it is a prepared one, word by word.

    Raises AskedError for an unknown ``request``.
    """
    data, known = loaded.data, None
    if asked.request:
        try:
            row = data.row_of(asked.request)
        except KeyError:
            problem = f"request: {asked.request!r:.80} is not in {data.name}"
            raise AskedError(f"{problem}. Fix: choose a held-out request from the list") from None
        known = data.requests[row]
        if asked.request != asked.shown or not (asked.q or asked.history):
            return known, row
        if asked.q == clean_line(known.query) and asked.purchases() == typed(known):
            return known, row
    request = Request(query=asked.q, history=asked.purchases())
    same = [r for r in loaded.by_query.get(asked.q.lower(), ()) if typed_row(loaded, r, request)]
    return (data.requests[same[0]], same[0]) if len(same) == 1 else (request, None)


def clean_line(text: str) -> str:
    """A prepared text as the page's field gives it back."""
    return " ".join(text.split())


def typed(request: Request) -> tuple:
    """A prepared request's purchases as they come back from the page's field."""
    return Asked(history=history_text(request.history)).purchases()


def typed_row(loaded: Loaded, row: int, request: Request) -> bool:
    """Whether a prepared request is the one that was typed."""
    return typed(loaded.data.requests[row]) == request.history


def attempt(asked: Asked, shop: Shop) -> Trial | None:
    """Try what is asked for; None where there is no request yet. Raises OspoError."""
    loaded = shop.loaded(asked.dataset)
    request, row = request_of(asked, loaded)
    if not (clean(request.query) or request.history):
        return None
    choices = [shop.policies.choice(asked.dataset, asked.version)]
    if asked.other and asked.other != asked.version:
        choices.append(shop.policies.choice(asked.dataset, asked.other))
    key = fingerprint(asked.dataset, asked.version, request.query, history_text(request.history))
    edit = asked if asked.key in ("", key) else replace(asked, text="", off="")

    def titles(request: Request) -> tuple[str, ...]:
        with shop.lock:
            return loaded.first_hits(request)

    texts = [shop.policies.rewrite(asked.dataset, choice, request, titles) for choice in choices]
    with shop.lock:
        work = _Work(shop, loaded, request, row, asked)
        sides = [
            work.side(choice, text, answering.answer, edit if number == 0 else None)
            for number, (choice, (text, answering)) in enumerate(zip(choices, texts, strict=True))
        ]
        raw = work.raw_side(sides[0].hits)
    return Trial(
        request=request,
        history=history_text(request.history),
        row=row,
        key=key,
        scope=work.scope,
        k=loaded.config.reward.k,
        pool=int((loaded.data.pools_RP[row] >= 0).sum()) if row is not None else 0,
        raw=raw,
        sides=tuple(sides),
    )


class _Work:
    """What the sides of one trial share."""

    def __init__(
        self, shop: Shop, loaded: Loaded, request: Request, row: int | None, asked: Asked
    ) -> None:
        self.config, self.loaded, self.asked = loaded.config, loaded, asked
        self.request, self.row = request, row
        self.language = loaded.data.language
        self.scope = asked.scope if row is not None else "catalogue"
        self.retriever = loaded.retriever(asked.retriever)
        self.reward: SearchReward = loaded.reward(asked.retriever)
        self.judged = loaded.judgements(request.request_id) if row is not None else {}
        self.raw_text = search_text(request.query)
        self.raw_order = self.rankings([self.raw_text])[0]

    def rankings(self, texts: list[str]) -> list[np.ndarray]:
        """Catalogue rows, best first, of each search text; none for an empty one."""
        said = [text for text in dict.fromkeys(texts) if text]
        found: dict[str, np.ndarray] = {"": np.zeros(0, dtype=np.int64)}
        data = self.loaded.data
        if said and self.row is not None and self.scope == "pool":
            scores_BP = self.reward.pool_scores(said, [self.row] * len(said))
            pool_P = data.pools_RP[self.row]
            order_BP = np.argsort(-scores_BP, axis=1, kind="stable")
            ranked = [pool_P[order] for order in order_BP]
            found |= {t: rows[rows >= 0] for t, rows in zip(said, ranked, strict=True)}
        elif said:
            rows_BK, _ = checked_search(self.retriever, said, DEPTH, len(data.item_ids))
            found |= dict(zip(said, rows_BK, strict=True))
        return [found[text] for text in texts]

    def ndcg(self, text: str) -> float | None:
        """The reward of a search text in the request's pool; None where nothing is judged."""
        return None if self.row is None else float(self.reward([text], [self.row])[0])

    def hits(self, order: np.ndarray) -> tuple[Hit, ...]:
        """The first results of a ranking."""
        before = {int(row): place for place, row in enumerate(self.raw_order, 1)}
        rows = [int(row) for row in order[:SHOWN]]
        return tuple(self._hit(row, place, before.get(row)) for place, row in enumerate(rows, 1))

    def _hit(self, row: int, rank: int, before: int | None) -> Hit:
        item = self.loaded.data.catalogue.row(row, named=True)
        fields = dict.fromkeys(item[name] for name in ("brand", "colour", "category", "group"))
        gain, label = self.judged.get(item["item_id"], (None, ""))
        attributes = " · ".join(field for field in fields if field)
        return Hit(rank, item["title"], attributes, gain, label, before)

    def raw_side(self, others: tuple[Hit, ...]) -> Side:
        """The raw query's results; which of them a rewrite's first results ``others`` lack."""
        kept = {hit.before for hit in others}
        hits = tuple(replace(h, leaves=h.rank not in kept) for h in self.hits(self.raw_order))
        text, choice = self.raw_text, Choice("", "raw query")
        return Side(
            choice, text, text, "", text, False, (), "", self.ndcg(text), 0.0, hits
        )  # fmt: skip

    def side(self, choice: Choice, text: str, rule: SearchText, edit: Asked | None) -> Side:
        """A policy's rewrite ``text``, as ``edit`` changes it."""
        wanted = search_text(edit.text) if edit else ""
        edited = bool(wanted) and wanted != text
        answer, base = (wanted, "") if edited else (text, "")
        rule = REWRITE if edited else rule
        if rule.keeps_request:  # only what is added are players, as in training
            answer = rule.added(self.request.query, text)
            base, rule = (rule.base(self.request.query), rule) if answer else ("", REWRITE)
            answer = answer or text
        whole = segment(
            answer,
            self.config.credit.segments,
            self.config.credit.unions,
            self.language,
        )
        seg, _ = join_repeats(whole, MAX_SEGMENTS)
        off = edit.switched_off(wanted or text) if edit else frozenset()
        on_N = np.array([place not in off for place in range(len(seg))], dtype=bool)
        said = rule.text(self.request.query, coalition_text(seg, on_N))
        credit_N, estimator, start = self._credit(rule, seg, on_N)
        order, changes_N = self._changes(rule, seg, on_N, said)
        phrases = tuple(
            Phrase(i, unit.strip(), bool(on_N[i]), credit_N[i], changes_N[i])
            for i, unit in enumerate(seg.units)
        )
        return Side(
            choice, text, wanted or text, base, said, edited, phrases, estimator,
            self.ndcg(said), start, self.hits(order),
        )  # fmt: skip

    def _changes(
        self, rule: SearchText, seg: Segmentation, on_N: np.ndarray, said: str
    ) -> tuple[np.ndarray, list[int | None]]:
        """The ranking of the text, and for each phrase of it how many of the first results are
        others without it.
        """
        texts = [said]
        for place in np.flatnonzero(on_N):
            mask = on_N.copy()
            mask[place] = False
            texts.append(rule.text(self.request.query, coalition_text(seg, mask)))
        order, *without = self.rankings(texts)
        first = set(order[:SHOWN].tolist())
        found = iter(without)
        changes = [
            len(first - set(next(found)[:SHOWN].tolist())) if present else None
            for present in on_N.tolist()
        ]
        return order, changes

    def _credit(
        self, rule: SearchText, seg: Segmentation, on_N: np.ndarray
    ) -> tuple[list[float | None], str, float]:
        """Owen-Shapley values of the phrases that are on (None for the others), how they were
        computed, and the reward they begin from.

        With all phrases on it is the game of training and of `ospo explain`; with some off the
        game of those left, between the same texts.
        """
        none: list[float | None] = [None] * len(seg)
        if self.row is None or not on_N.any():
            return none, "", 0.0
        value = self.loaded.reward_of(self.asked.retriever, rule)
        if on_N.all():
            engine = credit_engine(
                self.config,
                value,
                estimator="auto",
                budget=BUDGET,
                language=self.language,
            )
            (credit,) = engine.credit([seg.text], [self.row])
            return [float(phi) for phi in credit.phi_N], credit.estimator, credit.empty_value
        players = np.flatnonzero(on_N)
        number = {int(place): player for player, place in enumerate(players)}
        unions = tuple(
            group for u in seg.unions if (group := tuple(number[i] for i in u if i in number))
        )
        auto = get_estimator("auto")
        rng = np.random.default_rng(self.config.seed)
        masks = auto.plan(len(players), unions, BUDGET, rng)
        games = np.zeros((len(masks), len(seg)), dtype=bool)
        games[:, players] = masks
        texts = [coalition_text(seg, mask) for mask in games]
        values = np.asarray(value(texts, [self.row] * len(texts)), dtype=np.float64)
        for player, phi in enumerate(auto.fit(len(players), unions, masks, values)):
            none[int(players[player])] = float(phi)
        start = float(values[masks.sum(axis=1) == 0][0])
        return none, auto.used(len(players), unions, BUDGET, False), start
