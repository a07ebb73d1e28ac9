"""Targets of a warm start by a rule: the name of an earlier purchase of the requested type.

What a shopper bought before of the type that they ask for says more about what they will buy than
any attribute of one item: the rule ``history`` (:mod:`ospo.policy.rules`) gains with it on real
rows, where imitating attributes of the target teaches nothing that holds for other shoppers. A
policy that begins from the rule, varied, has the rule's gain and something to choose among. Only
requests of the training split are read, and of them neither target nor judgement.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ospo.data.dataset import PreparedData, Request
from ospo.data.request import Purchase
from ospo.errors import InputError
from ospo.policy.prompts import asked_for, clean, prompt_messages
from ospo.policy.text import REWRITE, SearchText

_INVENTED = 0.6  # share of examples that ask for another type of the shopper's purchases


class NameTeacher:
    """Writes, for training requests, names of earlier purchases of the requested type; each a pure
    function of (seed, request row, draw).
    """

    def __init__(self, data: PreparedData, noise: float, seed: int, answer: SearchText = REWRITE):
        """``noise`` in [0, 1]: the share of texts that are not the latest such name alone, but an
        earlier one, the latest two, or the latest with its colour. ``answer``: what answers are; of
        one that adds to the request only the names are written.

        Raises InputError where no shopper of the training split has earlier purchases with a name.
        """
        self.data, self.noise, self.seed, self.answer = data, noise, seed, answer
        self.rows = data.rows("train")
        self._kinds = dict(data.catalogue.select("item_id", "category").iter_rows())
        self._asking = {int(row): self._questions(data.requests[int(row)]) for row in self.rows}
        if not any(self._asking.values()):
            raise InputError(
                data.directory / "requests.parquet",
                "history",
                "holds no named purchase for a training request",
                "set sft.targets to attributes",
            )

    def example(self, row: int, draw: int) -> tuple[Request, str]:
        """A request to imitate and its text, made from the training request in ``row``: itself, or
        the same words asking for another type that the shopper has bought.

        Raises KeyError for a request outside the training split.
        """
        if row not in self._asking:
            raise KeyError(f"request row {row} is not of the training split")
        request, asking = self.data.requests[row], self._asking[row]
        rng = np.random.default_rng([self.seed, row, draw, 4])
        own = self._names(request.query, request.history)
        if asking and (not own or rng.random() < _INVENTED):
            question = asking[rng.integers(len(asking))]
            request = replace(request, query=question, hits=())
        return request, self._write(request, rng)

    def text(self, row: int, draw: int) -> str:
        """The text of :meth:`example`."""
        return self.example(row, draw)[1]

    def tokenizer_texts(self, draws: int = 4) -> Iterator[str]:
        """Prompts and texts of the training split: what a scratch policy's tokenizer is trained
        on.
        """
        for row in self.rows.tolist():
            for draw in range(draws):
                request, text = self.example(row, draw)
                yield prompt_messages(request, instruct=False)[0]["content"]
                yield text

    def _questions(self, request: Request) -> list[str]:
        """The request's words with each type of the shopper's purchases in place of its own, as far
        as they can be answered by a name; the type alone where the request does not name its own.
        """
        query, target = clean(request.query), clean(self._kinds.get(request.target_id, ""))
        kinds = dict.fromkeys(clean(purchase.type) for purchase in request.history)
        asking = [
            query.replace(target, kind) if target and target in query else kind
            for kind in kinds
            if kind
        ]
        return [text for text in asking if self._names(text, request.history)]

    def _names(self, query: str, history: tuple[Purchase, ...]) -> list[tuple[str, str]]:
        """Name and colour of the purchases of the requested type, latest first, each name once:
        those that the request does not say already.
        """
        found: dict[str, str] = {}
        for purchase in reversed(asked_for(query, history)):
            name = clean(purchase.name)
            if self.answer.keeps_request:
                name = self.answer.added(query, name)
            if name:
                found.setdefault(name, clean(purchase.colour))
        return list(found.items())

    def _write(self, request: Request, rng: np.random.Generator) -> str:
        names = self._names(request.query, request.history)
        parts = [name for name, _ in names[:1]]
        if names and rng.random() < self.noise:
            earlier = names[rng.integers(1, len(names))][0] if len(names) > 1 else ""
            ways = [[*parts, names[0][1]]] if names[0][1] else []
            ways += [[earlier], [*parts, names[1][0]]] if earlier else []
            parts = ways[rng.integers(len(ways))] if ways else parts
        if not self.answer.keeps_request:
            parts = [clean(request.query), *parts]
        return ", ".join(parts)
