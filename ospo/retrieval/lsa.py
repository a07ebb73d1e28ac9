"""Latent semantic analysis: TF-IDF reduced by a singular value decomposition of the catalogue
itself.

Source: Deerwester et al., "Indexing by latent semantic analysis", JASIS 1990.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ospo.retrieval.base import RetrieverError
from ospo.retrieval.linear import on_grid
from ospo.retrieval.words import WORD_BITS, WordVectorRetriever

SCALE = 16.0  # idf × a unit direction: entries around 0.5, well above the grid's 2**-12


class LSARetriever(WordVectorRetriever):
    """A word's vector is its idf × its row of the decomposition's term matrix, learnt from the
    catalogue (seeded).
    """

    def __init__(
        self, name: str = "lsa", seed: int = 0, dimensions: int = 128, language: str = "en"
    ) -> None:
        self._wanted, self._seed = dimensions, seed
        super().__init__(name, language)

    def index(
        self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path | None = None
    ) -> None:
        """Decompose the catalogue, then take it in; see ``Retriever``."""
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        tfidf = TfidfVectorizer(analyzer=self._split, sublinear_tf=True, max_features=50_000)
        try:
            weights_IW = tfidf.fit_transform(item_texts)
        except ValueError:
            raise RetrieverError(
                self.name, "no item text holds a word to index", "look at the catalogue's texts"
            ) from None
        self.dimensions = max(1, min(self._wanted, min(weights_IW.shape) - 1))
        if self.dimensions == min(weights_IW.shape):  # one item or one word: nothing to decompose
            components_DW = np.ones((1, weights_IW.shape[1]))
        else:
            svd = TruncatedSVD(
                self.dimensions, algorithm="randomized", random_state=self._seed
            ).fit(weights_IW)
            components_DW = svd.components_
        self._vocabulary: dict[str, int] = tfidf.vocabulary_
        self._table = on_grid(SCALE * tfidf.idf_[:, None] * components_DW.T, WORD_BITS)
        super().index(item_ids, item_texts, cache)

    def word_vectors(self, words: Sequence[str]) -> np.ndarray:
        """See ``WordVectorRetriever``."""
        known = [self._vocabulary.get(word, -1) for word in words]
        return np.where(np.array(known)[:, None] >= 0, self._table[known], 0.0)
