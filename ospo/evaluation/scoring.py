"""Measures of answers under one retriever, whose results are checked before they are measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ospo.data.dataset import PreparedData
from ospo.evaluation.measures import MEASURES, full_catalogue, measure
from ospo.policy.text import search_text
from ospo.retrieval.base import Retriever, checked_scores, checked_search

TOP_K = 1000  # depth of a search over the whole catalogue
SEARCHES = 512  # searches whose results are in memory at once


def score_texts(
    retriever: Retriever,
    texts: Sequence[str],
    pools_BP: np.ndarray,
    gains_BP: np.ndarray,
    scope: str = "pool",
    items: int = 0,
) -> dict[str, np.ndarray]:
    """All measures of answers (B,): name → (B,) float64. An empty answer scores 0, as in training.

    ``scope`` is ``pool`` (rank the pool's items only) or ``catalogue`` (search all ``items`` of
    it).
    """
    cleaned = [search_text(text) for text in texts]
    filled = np.flatnonzero([bool(text) for text in cleaned])
    values = {name: np.zeros(len(cleaned)) for name in MEASURES}
    step = len(filled) or 1 if scope == "pool" else SEARCHES
    for start in range(0, len(filled), step):
        some = filled[start : start + step]
        kept = [cleaned[place] for place in some]
        if scope == "pool":
            scores, gains = checked_scores(retriever, kept, pools_BP[some]), gains_BP[some]
        else:
            distinct = {text: n for n, text in enumerate(dict.fromkeys(kept))}
            places = [distinct[text] for text in kept]
            rows_BK, scores_BK = (
                found[places] for found in checked_search(retriever, list(distinct), TOP_K, items)
            )
            scores, gains = full_catalogue(
                rows_BK, scores_BK, pools_BP[some], gains_BP[some], items
            )
        for name, value in measure(scores, gains).items():
            values[name][some] = value
    return values


@dataclass(frozen=True)
class Chunk:
    """The distinct search texts of a chunk of requests, whoever wrote them; retrievers score each
    of them once.

    texts (U,): request by request, so that all texts of a request share one lookup of its pool.
    owners_U: the request row each belongs to. slots_JR: which text is the answer of job j to
    request r.
    """

    texts: list[str]
    owners_U: np.ndarray
    slots_JR: np.ndarray

    @classmethod
    def of(cls, part: np.ndarray, columns: Sequence[Sequence[str]]) -> "Chunk":
        """``part`` (R,): request rows; ``columns``: each job's answers to them."""
        unique: dict[tuple[int, str], int] = {}
        slots_JR = np.empty((len(columns), len(part)), dtype=np.int64)
        for r in range(len(part)):
            for j, column in enumerate(columns):
                slots_JR[j, r] = unique.setdefault((r, search_text(column[r])), len(unique))
        owners = part[np.array([r for r, _ in unique], dtype=np.int64)]
        return cls([text for _, text in unique], owners, slots_JR)

    def only(self, jobs: Sequence[int]) -> "Chunk":
        """The same for some of the jobs."""
        if len(jobs) == len(self.slots_JR):
            return self
        kept, slots = np.unique(self.slots_JR[list(jobs)], return_inverse=True)
        texts = [self.texts[u] for u in kept]
        return Chunk(texts, self.owners_U[kept], slots.reshape(len(jobs), self.slots_JR.shape[1]))


def score_chunk(
    retriever: Retriever, data: PreparedData, chunk: Chunk, scope: str
) -> dict[str, np.ndarray]:
    """Measures of a chunk's answers: name → (jobs, requests)."""
    pools_UP, gains_UP = data.pools_RP[chunk.owners_U], data.gains_RP[chunk.owners_U]
    values = score_texts(retriever, chunk.texts, pools_UP, gains_UP, scope, len(data.item_ids))
    return {name: value[chunk.slots_JR] for name, value in values.items()}
