"""Retrievers of word vectors: a text is the sum of its distinct words' vectors, without context or
order.

An item's score is that sum · the item's unit vector. It ranks as their cosine does (a text's length
is the same for all items) and stays a sum over words.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ospo.retrieval.analysers import words_of
from ospo.retrieval.base import top_rows
from ospo.retrieval.linear import LinearRetriever, on_grid

# Words on a 2**-12 grid and items on a 2**-20 grid: products are multiples of 2**-32, and their
# sums exact in float64.
WORD_BITS, ITEM_BITS = 12, 20
MEMO_WORDS = 50_000
CHUNK = 4096
SMALL = 8_000_000  # vector entries (64 MB in float64)


class WordVectorRetriever(LinearRetriever):
    """Base of static embeddings and LSA, which give ``word_vectors``. A word is a run of letters
    and digits (``analysers.words_of``).
    """

    dimensions = 0
    _items64_ID: np.ndarray | None = None

    def __init__(self, name: str, language: str = "en") -> None:
        self.name = name
        self._split = words_of(language)
        self._forget()

    def word_vectors(self, words: Sequence[str]) -> np.ndarray:
        """Vectors (W, D) float64, multiples of 2**-WORD_BITS, of lower-case words; unknown ones are
        zero.
        """
        raise NotImplementedError

    def _forget(self) -> None:
        self._words: dict[str, int] = {}
        self._vectors = np.zeros((0, self.dimensions))

    def terms(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text's words in a vocabulary that grows; see ``LinearRetriever``."""
        if len(self._words) > MEMO_WORDS:
            self._forget()
        words_B = [self._split(text) for text in texts]
        new = list(
            dict.fromkeys(word for words in words_B for word in words if word not in self._words)
        )
        if new:
            first = len(self._words)
            if first + len(new) > len(self._vectors):
                more = np.zeros((max(1024, len(self._vectors), len(new)), self.dimensions))
                self._vectors = np.concatenate([self._vectors, more])
            self._vectors[first : first + len(new)] = self.word_vectors(new)
            self._words.update(zip(new, range(first, first + len(new)), strict=True))
        return [
            np.array([self._words[word] for word in words], dtype=np.int64) for words in words_B
        ]

    def index(
        self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path | None = None
    ) -> None:
        """Take in the catalogue: an item's vector is the sum over all its words, repeats
        included.
        """
        self._forget()
        vectors_ID = np.zeros((len(item_texts), self.dimensions), dtype=np.float32)
        for start in range(0, len(item_texts), CHUNK):
            for row, terms in enumerate(self.terms(item_texts[start : start + CHUNK]), start):
                total_D = self._vectors[terms].sum(axis=0)
                if norm := np.sqrt(total_D @ total_D):
                    vectors_ID[row] = on_grid(total_D / norm, ITEM_BITS)
        self._item_vectors_ID, self._items64_ID = vectors_ID, None
        self.items = len(item_ids)

    def search(self, texts: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Best rows (B, K) and scores (B, K) of the whole catalogue; see ``Retriever``.

        The words' vectors are added before the product with the items: the sums are exact, so these
        are the scores of ``score`` to the bit, with one product per text instead of one per word.
        """
        if not self.items:
            raise ValueError(f"retriever {self.name}: search before index")
        width = min(top_k, self.items)
        rows_BK = np.zeros((len(texts), width), np.int64)
        scores_BK = np.zeros((len(texts), width), np.float32)
        items_ID = self._exact_items()
        step = max(1, 2_000_000 // self.items)
        for start in range(0, len(texts), step):
            terms_B = self.terms(texts[start : start + step])
            text_BD = np.stack([self._vectors[np.unique(terms)].sum(axis=0) for terms in terms_B])
            scores_BI = np.empty((len(text_BD), self.items), dtype=np.float32)
            for first in range(0, self.items, CHUNK):
                part_ID = items_ID[first : first + CHUNK].astype(np.float64, copy=False)
                scores_BI[:, first : first + CHUNK] = text_BD @ part_ID.T
            rows_BK[start : start + step], scores_BK[start : start + step] = top_rows(
                scores_BI, top_k
            )
        return rows_BK, scores_BK

    def _exact_items(self) -> np.ndarray:
        """The items' vectors (I, D), in float64 where the catalogue is small enough to keep both
        copies.
        """
        if self._item_vectors_ID.size <= SMALL and self._items64_ID is None:
            self._items64_ID = self._item_vectors_ID.astype(np.float64)
        return self._item_vectors_ID if self._items64_ID is None else self._items64_ID

    def term_scores(self, terms_V: np.ndarray, rows_P: np.ndarray | None) -> np.ndarray:
        """Scores (V, P) float64; see ``LinearRetriever``."""
        items_PD = (
            self._item_vectors_ID
            if rows_P is None
            else self._item_vectors_ID[np.maximum(rows_P, 0)]
        )
        return self._vectors[terms_V] @ items_PD.T.astype(np.float64)
