"""The first hits of requests in the whole catalogue, for rules and policies that read them."""

from collections.abc import Sequence
from dataclasses import replace

from ospo.config import Config
from ospo.data.dataset import PreparedData, Requests
from ospo.data.request import Request
from ospo.policy.rules import HITS
from ospo.policy.text import search_text
from ospo.retrieval import build_retriever
from ospo.retrieval.base import Retriever, checked_search


class FirstHits:
    """Titles of the first hits of the raw query under the training retriever.

    The whole catalogue is searched, never a pool: a pool holds every relevant item by construction,
    so its first hits would tell something of the judgements. Each distinct query is searched once.
    ``built`` receives the retriever and its parts, for whoever scores with them afterwards.
    """

    def __init__(self, config: Config, data: PreparedData, built: dict[str, Retriever]):
        self.config, self.data, self.built = config, data, built
        self._known: dict[str, tuple[str, ...]] = {"": ()}
        self._titles = data.catalogue["title"].to_list()

    def __call__(self, requests: Sequence[Request]) -> list[tuple[str, ...]]:
        """Titles, best first, of each request; none where its query is blank."""
        texts = [search_text(request.query) for request in requests]
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            name = self.config.retrievers.training
            retriever = build_retriever(name, self.config, self.data, self.built)
            rows_BK, _ = checked_search(retriever, new, HITS, len(self._titles))
            for text, rows_K in zip(new, rows_BK.tolist(), strict=True):
                self._known[text] = tuple(self._titles[row] for row in rows_K)
        return [self._known[text] for text in texts]


def with_hits(config: Config, data: PreparedData, built: dict[str, Retriever]) -> PreparedData:
    """``data`` whose requests carry the titles of their first ``context`` hits, as a policy reads
    them in training; ``data`` itself where ``context`` is 0. Test requests carry none.
    """
    if not config.context:
        return data
    rows = [row for split in ("train", "validation") for row in data.rows(split).tolist()]
    titles = FirstHits(config, data, built)([data.requests[row] for row in rows])
    shown = {row: found[: config.context] for row, found in zip(rows, titles, strict=True)}
    return replace(data, requests=Requests(data.requests.frame, shown))
