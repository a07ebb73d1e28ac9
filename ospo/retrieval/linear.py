"""Retrievers whose scores add up over the distinct words of a text.

A text is the *set* of its words (query term frequency saturates at once: k3 = 0 in BM25's terms),
so repeating a word earns nothing, and the score of any coalition of phrases follows from per-word
scores without reading the coalition's text.

Per-word scores lie on a binary grid and are added in float64, where such sums are exact: any order
of summation, any batch and any thread count gives the same bits, so that a text's own score equals
the one computed for it as a coalition.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ospo.retrieval.base import check_rows, one_blas_thread, pool_runs, top_rows


def on_grid(values: np.ndarray, bits: int) -> np.ndarray:
    """``values`` as float64 multiples of 2**-bits."""
    scale = 2.0**bits
    return np.round(np.asarray(values, dtype=np.float64) * scale) / scale


def union_terms(term_sets: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct terms (V,) of all sets, and incidence (len(term_sets), V) float64 with 1 where a set
    holds a term.
    """
    lengths = [len(terms) for terms in term_sets]
    flat = np.concatenate(term_sets) if term_sets else np.zeros(0, dtype=np.int64)
    terms_V, column = np.unique(flat, return_inverse=True)
    incidence_BV = np.zeros((len(term_sets), len(terms_V)))
    incidence_BV[np.repeat(np.arange(len(term_sets)), lengths), column] = 1.0
    return terms_V, incidence_BV


class LinearRetriever:
    """Base of retrievers that score word by word: sub-classes give ``index``, ``terms`` and
    ``term_scores``.
    """

    name = "linear"
    linear = True
    items = 0

    def index(
        self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path | None = None
    ) -> None:
        """Take in the catalogue (``cache`` is not used: indexing takes seconds)."""
        raise NotImplementedError

    def terms(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids (int64, repeats allowed) of each text's words, valid until the next call.

        Words never cross white space: the terms of "a b" are those of "a" and of "b".
        """
        raise NotImplementedError

    def term_scores(self, terms_V: np.ndarray, rows_P: np.ndarray | None) -> np.ndarray:
        """Exact scores (V, P) float64 of each term over catalogue rows (None: all; -1: any
        value).
        """
        raise NotImplementedError

    def score(self, texts: Sequence[str], rows_BP: np.ndarray) -> np.ndarray:
        """Scores (B, P) float32; see ``Retriever``."""
        rows_BP = check_rows(self.name, texts, rows_BP, self.items)
        scores_BP = np.empty(rows_BP.shape, dtype=np.float32)
        terms_B = self.terms(texts)
        with one_blas_thread():
            for start, stop in pool_runs(rows_BP):
                terms_V, incidence_BV = union_terms(terms_B[start:stop])
                scores_BP[start:stop] = incidence_BV @ self.term_scores(terms_V, rows_BP[start])
        scores_BP[rows_BP < 0] = -np.inf
        return scores_BP

    def search(self, texts: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Best rows (B, K) and scores (B, K) of the whole catalogue; see ``Retriever``."""
        if not self.items:
            raise ValueError(f"retriever {self.name}: search before index")
        width = min(top_k, self.items)
        rows_BK = np.zeros((len(texts), width), np.int64)
        scores_BK = np.zeros((len(texts), width), np.float32)
        chunk = max(1, 2_000_000 // self.items)
        for start in range(0, len(texts), chunk):
            stop = min(start + chunk, len(texts))
            terms_V, incidence_BV = union_terms(self.terms(texts[start:stop]))
            exact_BI = incidence_BV @ self.term_scores(terms_V, None)
            rows_BK[start:stop], scores_BK[start:stop] = top_rows(
                exact_BI.astype(np.float32), top_k
            )
        return rows_BK, scores_BK
