"""An approximate index (HNSW, by FAISS) for catalogues too large to score in full.

Candidate pools never need one: ``Retriever.score`` reads a pool's vectors directly, and ``search`` of up to some
hundred thousand items is exact. It is here for larger catalogues, and as what the benchmarks compare with.

Source: Malkov & Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable
Small World graphs", IEEE TPAMI 2020.
"""

import numpy as np


class HnswIndex:
    """Unit vectors (I, D) float32 under inner product. ``neighbours`` (M) and ``build_effort`` are HNSW's own."""

    def __init__(self, vectors_ID: np.ndarray, neighbours: int = 32, build_effort: int = 80) -> None:
        import faiss

        self._index = faiss.IndexHNSWFlat(vectors_ID.shape[1], neighbours, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = build_effort
        self._index.add(np.ascontiguousarray(vectors_ID, dtype=np.float32))

    def search(self, vectors_BD: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (B, K) int64 and scores (B, K) float32, best first; row -1 where the graph found fewer.

        The search keeps at least ``top_k`` candidates: with fewer it would not find that many neighbours.
        """
        self._index.hnsw.efSearch = max(top_k, 16)
        scores_BK, rows_BK = self._index.search(np.ascontiguousarray(vectors_BD, dtype=np.float32), top_k)
        return rows_BK, scores_BK
