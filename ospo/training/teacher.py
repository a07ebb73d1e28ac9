"""Noisy teacher texts: what the policy imitates before reinforcement learning.

A teacher text is the request's words (where answers add to the request: not those) and a few
attributes of a relevant item, some of them lost and some replaced by another item's. A policy that
imitates it writes well-formed, varied and imperfect search texts: something is left to find, and
there is variety to find it in. Only requests of the training split are ever read.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ospo.data.dataset import PreparedData, Request
from ospo.policy.prompts import clean, prompt_messages
from ospo.policy.text import REWRITE, SearchText

_WORD = re.compile(r"[^\W\d_]{3,}")
_LOST = 2 / 3  # of the noise: attributes left out; the rest are another item's
_CATALOGUE = 0.15  # share of examples that ask for an item of the catalogue
_TEXT_WORDS = 60  # of an item's text that are looked at
_RARE, _COMMON = (
    3,
    0.2,
)  # an attribute is worn by at least 3 items and at most a fifth of the catalogue
# Words that join, not describe. The upper bound on frequency finds most; a small catalogue lets
# these through.
_JOINING = frozenset(
    "and are but can for from has her his its not our out own she that the their them these they "
    "this those was were "
    "will with you your into over under when while which all any both each more most other some "
    "such only same than "
    "too very also one two made make makes use used using perfect great".split()
)


class Teacher:
    """Writes teacher texts for training requests, each a pure function of (seed, request row,
    draw).
    """

    def __init__(
        self,
        data: PreparedData,
        noise: float,
        seed: int,
        answer: SearchText = REWRITE,
        attributes: tuple[int, int] = (1, 4),
    ):
        """``noise`` in [0, 1]: the share of attributes that are lost (two thirds) or another item's
        (one third). ``attributes``: how many a text begins from, at least and at most, before
        noise. ``answer``: what answers are. Of one that adds to the request only what it
        adds is written, and one attribute at least where any is known: an answer that says nothing
        is the raw query, which a policy learns too soon and then learns nothing more.
        """
        self.data, self.noise, self.seed, self.answer = data, noise, seed, answer
        self._least, self._most = attributes
        self.rows = data.rows("train")
        self._names = data.catalogue.select("category", "colour")
        self._kinds = {
            item: clean(kind) for item, kind in data.catalogue.select("item_id", "category").rows()
        }
        self._attributes, self._shared = _item_attributes(data)
        self._relevant = {int(row): _best_items(data, int(row)) for row in self.rows}

    def attributes(self, item: int) -> tuple[str, ...]:
        """Attribute phrases of a catalogue row, lower case, best first."""
        return self._attributes[item]

    def text(self, row: int, draw: int) -> str:
        """A search text for the training request in ``row``; ``draw`` numbers independent texts.

        Raises KeyError for a request outside the training split.
        """
        items = self._relevant[row]
        rng = np.random.default_rng([self.seed, row, draw])
        item = items[rng.integers(len(items))]
        return self._write(clean(self.data.requests[row].query), self._attributes[item], rng)

    def example(self, row: int, draw: int) -> tuple[Request, str]:
        """A request to imitate and its search text, made from the training request in ``row``.

        A few hundred requests are soon learned by heart, and what is known by heart is not copied,
        nor inferred, and earns rewards in training that do not come back on held-out requests. So a
        shopper's targets are left to the reward: the example asks for one of the other purchases in
        the words of the request, with the rest as history in any order. Some draws ask for an item
        of the catalogue by its colour and type. Requests without purchases are shown as they are.

        Raises KeyError for a request outside the training split.
        """
        if row not in self._relevant:
            raise KeyError(f"request row {row} is not of the training split")
        request = self.data.requests[row]
        rng = np.random.default_rng([self.seed, row, draw, 1])
        if rng.random() < _CATALOGUE:
            item = int(rng.integers(len(self._attributes)))
            named = self._named(item)
            query = " ".join(named[i] for i in rng.permutation(len(named)))
            if query:
                return replace(request, query=query, history=(), hits=()), self._write(
                    query, self._attributes[item], rng
                )
        history = [request.history[i] for i in rng.permutation(len(request.history))]
        if len(history) > 1 and clean(history[0].type):
            bought, history = history[0], history[1:]
            query = self._asking_for(request, clean(bought.type))
            words = (word for word in clean(bought.name).split() if word in self._shared)
            attributes = tuple(
                dict.fromkeys([field for field in (clean(bought.colour),) if field] + list(words))
            )
            return replace(request, query=query, history=tuple(history), hits=()), self._write(
                query, attributes, rng, in_order=True
            )
        return replace(request, history=tuple(history)), self.text(row, draw)

    def _asking_for(self, request: Request, kind: str) -> str:
        """The request's words with ``kind`` in place of the target's; ``kind`` alone where the
        target is not named.
        """
        query, target = clean(request.query), self._kinds.get(request.target_id, "")
        return query.replace(target, kind) if target and target in query else kind

    def _named(self, item: int) -> list[str]:
        """Type and colour of an item, as far as they are known."""
        return [text for text in map(clean, self._names.row(item)) if text]

    def _write(
        self,
        query: str,
        attributes: tuple[str, ...],
        rng: np.random.Generator,
        in_order: bool = False,
    ) -> str:
        """``in_order``: the attributes that are picked keep their order, as where they are copied
        from a purchase. In any order, the policy comes back to a name's first words after its last
        ones, and says them twice.
        """
        seen = set(query.split())
        own = _fresh(attributes, seen)
        order = rng.permutation(len(own))[: rng.integers(self._least, self._most + 1)]
        picked = [own[i] for i in (sorted(order) if in_order else order)]
        parts = [] if self.answer.keeps_request else [query]
        for phrase in picked:
            roll = rng.random()
            if roll < self.noise * _LOST:
                continue
            if roll < self.noise:
                other = _fresh(self._attributes[rng.integers(len(self._attributes))], seen)
                if not other:
                    continue
                phrase = other[rng.integers(len(other))]
            if phrase not in parts:
                parts.append(phrase)
        if self.answer.keeps_request:  # only what is new, and something where anything is known
            fresh = [self.answer.added(query, phrase) for phrase in [*parts, *picked, *own]]
            parts = [new for new in fresh[: len(parts)] if new] or [n for n in fresh if n][:1]
        # Commas mostly; now and then the words run on, so that the policy knows both ways.
        return (", " if rng.random() < 0.8 else " ").join(part for part in parts if part)

    def tokenizer_texts(self, draws: int = 4) -> Iterator[str]:
        """Prompts and teacher texts of the training split: what a scratch policy's tokenizer is
        trained on.
        """
        for row in self.rows.tolist():
            yield prompt_messages(self.data.requests[row], instruct=False)[0]["content"]
            for draw in range(draws):
                yield self.text(row, draw)
            yield from (f" {word}" for word in clean(self.data.requests[row].query).split())


def _best_items(data: PreparedData, row: int) -> list[int]:
    gains_P = data.gains_RP[row]
    return data.pools_RP[row][gains_P >= gains_P.max()].tolist()


def _fresh(attributes: tuple[str, ...], seen: set[str]) -> list[str]:
    return [phrase for phrase in attributes if not seen.issuperset(phrase.split())]


def _item_attributes(data: PreparedData) -> tuple[list[tuple[str, ...]], frozenset[str]]:
    """Attribute phrases of every catalogue row, and the words that count as attributes.

    An item's are its colour, type and brand, then words that several items share. How many items
    use a word tells attributes from names (too rare) and from filler (too common), in any language;
    words of the item's department tell nothing that its type does not.
    """
    columns = ["text", "group", "colour", "category", "brand"]
    words: list[list[str]] = []
    fields: list[list[str]] = []
    for text, group, *rest in data.catalogue.select(columns).iter_rows():
        start = clean(" ".join(text.split()[:_TEXT_WORDS]))
        department = set(clean(group).split())
        words.append(
            [word for word in dict.fromkeys(_WORD.findall(start)) if word not in department]
        )
        fields.append([" ".join(clean(field).lower().split()[:3]) for field in rest])
    count = Counter(word for item in words for word in item)
    most = max(_RARE, _COMMON * len(words))
    shared = frozenset(
        word for word, n in count.items() if _RARE <= n <= most and word not in _JOINING
    )
    attributes = [
        tuple(
            dict.fromkeys(
                [field for field in item_fields if field]
                + [word for word in item if word in shared]
            )
        )
        for item, item_fields in zip(words, fields, strict=True)
    ]
    return attributes, shared
