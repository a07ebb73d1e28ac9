"""BM25 by bm25s: its index holds every term × document score, so a pool is scored by look-up and
one product.

Source: Lù, "BM25S: Orders of magnitude faster lexical search via eager sparse scoring", arXiv
2407.03618.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ospo.retrieval.analysers import LONG_WORD, stem_of, stop_words, words_of
from ospo.retrieval.base import RetrieverError
from ospo.retrieval.linear import LinearRetriever, on_grid

# bm25s' own defaults: Lucene's variant, k1 = 1.5, b = 0.75.
GRID_BITS = 16
MEMO_WORDS = 200_000


def _slices(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Positions of the slices [start, start + length), one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


class BM25Retriever(LinearRetriever):
    """BM25 over a language's stemmed words without its stop words (``analysers``); a query is the
    set of its words (k3 = 0).
    """

    def __init__(self, name: str = "bm25", language: str = "en") -> None:
        self.name = name
        self._words = words_of(language, LONG_WORD)
        self._stem = stem_of(language)
        self._stop = stop_words(language)
        self._memo: dict[str, int] = {}

    def _tokens(self, text: str) -> list[str]:
        return [self._stem(word) for word in self._words(text) if word not in self._stop]

    def index(
        self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path | None = None
    ) -> None:
        """Take in the catalogue; see ``Retriever``."""
        import bm25s
        from scipy.sparse import csc_matrix

        tokens = [self._tokens(text) for text in item_texts]
        vocabulary = {
            token: i for i, token in enumerate(dict.fromkeys(t for item in tokens for t in item))
        }
        self.vocabulary = vocabulary
        self._memo = {}
        self.items = len(item_ids)
        if not vocabulary:
            raise RetrieverError(
                self.name, "no item text holds a word to index", "look at the catalogue's texts"
            )
        self.model = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        # A copy: bm25s adds an empty word of its own.
        self.model.index(
            ([[vocabulary[t] for t in item] for item in tokens], dict(vocabulary)),
            show_progress=False,
        )
        scores = self.model.scores
        by_term = csc_matrix(
            (on_grid(scores["data"], GRID_BITS), scores["indices"], scores["indptr"]),
            shape=(self.items, len(scores["indptr"]) - 1),
        )
        by_item = by_term.tocsr()
        self._terms = by_term.indptr.astype(np.int64), by_term.indices, by_term.data
        self._items = by_item.indptr.astype(np.int64), by_item.indices, by_item.data
        self._local = np.full(by_term.shape[1], -1, dtype=np.int64)

    def _word(self, word: str) -> int:
        return -1 if word in self._stop else self.vocabulary.get(self._stem(word), -1)

    def terms(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Vocabulary ids of each text's known words; see ``LinearRetriever``."""
        memo = self._memo
        if len(memo) > MEMO_WORDS:
            memo.clear()
        found = []
        for text in texts:
            words = self._words(text)
            for word in words:
                if word not in memo:
                    memo[word] = self._word(word)
            found.append(np.array([i for word in words if (i := memo[word]) >= 0], dtype=np.int64))
        return found

    def term_scores(self, terms_V: np.ndarray, rows_P: np.ndarray | None) -> np.ndarray:
        """Scores (V, P) float64, multiples of 2**-16; see ``LinearRetriever``."""
        if rows_P is None:
            pointers, items, data = self._terms
            lengths = pointers[terms_V + 1] - pointers[terms_V]
            at = _slices(pointers[terms_V], lengths)
            scores_VI = np.zeros((len(terms_V), self.items))
            scores_VI[np.repeat(np.arange(len(terms_V)), lengths), items[at]] = data[at]
            return scores_VI
        pointers, terms, data = self._items
        rows_P = np.maximum(rows_P, 0)
        lengths = pointers[rows_P + 1] - pointers[rows_P]
        at = _slices(pointers[rows_P], lengths)
        # Global term id → its place among the terms asked for; reset to -1 afterwards.
        self._local[terms_V] = np.arange(len(terms_V))
        place = self._local[terms[at]]
        self._local[terms_V] = -1
        known = place >= 0
        scores_VP = np.zeros((len(terms_V), len(rows_P)))
        scores_VP[place[known], np.repeat(np.arange(len(rows_P)), lengths)[known]] = data[at][known]
        return scores_VP
