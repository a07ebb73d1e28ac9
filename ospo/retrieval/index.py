"""Search of a whole catalogue by vectors, through FAISS: exact up to some size, an HNSW graph
beyond.

Either way the candidates that FAISS finds are scored again in float64. Vectors lie on a binary grid
(``ospo.retrieval.dense``), so those sums are exact: scores are the ones that ``Retriever.score``
gives, and equal ones keep catalogue order. Candidate pools need no index.

Sources: Douze et al., "The Faiss library", arXiv 2401.08281; Malkov & Yashunin, "Efficient and
robust approximate nearest neighbor search using Hierarchical Navigable Small World graphs", IEEE
TPAMI 2020.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ospo.files import atomic_file
from ospo.retrieval.base import one_blas_thread, top_rows

MARGIN = 32  # candidates beyond those asked for: rounding and ties must not push one of those out
EFFORT = 256  # least efSearch: candidates that the walk keeps
_TRAINED_ON, _ADDED = 100_000, 1 << 15


def rescore(vectors_ID: np.ndarray, texts_BD: np.ndarray, rows_BC: np.ndarray) -> np.ndarray:
    """Scores (B, C) float64 of candidate rows (B, C), -inf for row -1."""
    scores_BC = np.empty(rows_BC.shape)
    with one_blas_thread():
        for b, (text_D, rows_C) in enumerate(
            zip(texts_BD.astype(np.float64), rows_BC, strict=True)
        ):
            scores_BC[b] = vectors_ID[np.maximum(rows_C, 0)].astype(np.float64) @ text_D
    scores_BC[rows_BC < 0] = -np.inf
    return scores_BC


def _best(rows_BC: np.ndarray, scores_BC: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best ``top_k`` candidates, best first, equal scores by row."""
    order_BK = np.lexsort((rows_BC, -scores_BC), axis=1)[:, :top_k]
    return np.take_along_axis(rows_BC, order_BK, axis=1), np.take_along_axis(
        scores_BC, order_BK, axis=1
    )


def flat_search(
    vectors_ID: np.ndarray, texts_BD: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Best rows (B, K) int64 and scores (B, K) float32 of all vectors (I, D), exactly; equal scores
    by row.

    FAISS ranks in float32 and breaks ties in no fixed order. Where the K-th score is not above all
    that was left out by more than float32's rounding, the text is ranked again in full.
    """
    import faiss

    items, dimensions = vectors_ID.shape
    width, depth = min(top_k, items), min(top_k + MARGIN, items)
    texts_BD = np.ascontiguousarray(texts_BD, dtype=np.float32)
    if not len(texts_BD) or not width:
        return np.zeros((len(texts_BD), width), np.int64), np.zeros(
            (len(texts_BD), width), np.float32
        )
    found_BC, rows_BC = faiss.knn(texts_BD, vectors_ID, depth, metric=faiss.METRIC_INNER_PRODUCT)
    rows_BK, scores_BK = _best(rows_BC, rescore(vectors_ID, texts_BD, rows_BC), width)
    if depth < items:
        # |rounding| <= D 2**-24 Σ|x y| <= D 2**-24 |x| |y|; items' vectors have length 1, but for
        # the grid.
        rounding_B = 1.01 * dimensions * 2.0**-24 * np.linalg.norm(texts_BD, axis=1)
        for b in np.flatnonzero(scores_BK[:, -1] <= found_BC.min(axis=1) + rounding_B):
            rows_BK[b], scores_BK[b] = _full_ranking(vectors_ID, texts_BD[b], width)
    return rows_BK, scores_BK.astype(np.float32)


def _full_ranking(
    vectors_ID: np.ndarray, text_D: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    text_D = text_D.astype(np.float64)
    parts = [
        vectors_ID[at : at + _ADDED].astype(np.float64) @ text_D
        for at in range(0, len(vectors_ID), _ADDED)
    ]
    rows_1K, scores_1K = top_rows(np.concatenate(parts)[None], top_k)
    return rows_1K[0], scores_1K[0]


class HnswIndex:
    """An HNSW graph over unit vectors (I, D) under inner product.

    The graph holds them in 8 bits per dimension, a quarter of their size; the candidates it finds
    are scored by the vectors themselves, which may be mapped from a file. ``neighbours`` (M) and
    ``build_effort`` (efConstruction) are HNSW's own. ``progress`` is called with the number of
    items added so far. Built by several threads, graphs differ in detail.
    """

    def __init__(
        self,
        vectors_ID: np.ndarray,
        neighbours: int = 32,
        build_effort: int = 80,
        progress: Callable[[int], None] = lambda items: None,
    ) -> None:
        import faiss

        items, dimensions = vectors_ID.shape
        self._vectors_ID = vectors_ID
        code: Any = faiss.ScalarQuantizer.QT_8bit  # an int, whatever the stubs say
        self._index: Any = faiss.IndexHNSWSQ(
            dimensions, code, neighbours, faiss.METRIC_INNER_PRODUCT
        )
        self._index.hnsw.efConstruction = build_effort
        self._index.train(
            np.ascontiguousarray(vectors_ID[:: -(-items // _TRAINED_ON)], dtype=np.float32)
        )
        for begin in range(0, items, _ADDED):
            self._index.add(
                np.ascontiguousarray(vectors_ID[begin : begin + _ADDED], dtype=np.float32)
            )
            progress(min(begin + _ADDED, items))

    @classmethod
    def load(cls, path: str | Path, vectors_ID: np.ndarray) -> "HnswIndex | None":
        """The graph that ``save`` wrote for these vectors; None where the file is damaged or
        holds others.
        """
        import faiss

        try:
            index = faiss.read_index(str(path))
        except RuntimeError:
            return None
        if not isinstance(index, faiss.IndexHNSW) or (index.ntotal, index.d) != vectors_ID.shape:
            return None
        loaded = cls.__new__(cls)
        loaded._vectors_ID, loaded._index = vectors_ID, index
        return loaded

    def save(self, path: str | Path) -> None:
        """Write the graph, atomically."""
        import faiss

        with atomic_file(path) as temporary:
            faiss.write_index(self._index, str(temporary))

    def search(
        self, vectors_BD: np.ndarray, top_k: int, effort: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows (B, K) int64 and scores (B, K) float32, best first; row -1 where the graph found
        fewer.

        ``effort`` (efSearch) is how many candidates the walk keeps: by default twice as many as are
        asked for, and at least 256; with fewer than ``top_k`` it would not find that many.
        """
        import faiss

        depth = min(top_k + MARGIN, self._index.ntotal)
        texts_BD = np.ascontiguousarray(vectors_BD, dtype=np.float32)
        parameters = faiss.SearchParametersHNSW(  # type: ignore[attr-defined]
            efSearch=max(depth, effort) if effort else max(2 * depth, EFFORT)
        )
        _, rows_BC = self._index.search(texts_BD, depth, params=parameters)
        rows_BK, scores_BK = _best(
            rows_BC, rescore(self._vectors_ID, texts_BD, rows_BC), min(top_k, depth)
        )
        return rows_BK, scores_BK.astype(np.float32)
