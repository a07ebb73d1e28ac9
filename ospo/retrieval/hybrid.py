"""BM25 and a dense retriever joined by reciprocal rank fusion.

Source: Cormack, Clarke & Büttcher, "Reciprocal rank fusion outperforms Condorcet …", SIGIR 2009: an
item's score is Σ over the rankings of 1 / (60 + rank).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ospo.retrieval.base import Retriever, check_rows, top_rows

K = 60
DEPTH = 1000  # a list of a search over the whole catalogue goes this deep


def reciprocal_ranks(scores_BP: np.ndarray) -> np.ndarray:
    """1 / (60 + rank) (B, P) float64; equal scores share the best rank, -inf is not in the list and
    gets 0.
    """
    order_BP = np.argsort(-scores_BP, axis=1, kind="stable")
    sorted_BP = np.take_along_axis(scores_BP, order_BP, axis=1)
    new_BP = np.ones(scores_BP.shape, dtype=bool)
    new_BP[:, 1:] = sorted_BP[:, 1:] != sorted_BP[:, :-1]
    rank_BP = np.maximum.accumulate(
        np.where(new_BP, np.arange(1, scores_BP.shape[1] + 1), 0), axis=1
    )
    ranks_BP = np.empty_like(rank_BP)
    np.put_along_axis(ranks_BP, order_BP, rank_BP, axis=1)
    return np.where(np.isneginf(scores_BP), 0.0, 1.0 / (K + ranks_BP))


class HybridRetriever:
    """Fusion of a lexical and a dense retriever. An item without any of the text's words is not in
    BM25's list.

    ``ready``: both are indexed already, over the catalogue that ``index`` will be called with.
    """

    linear = False

    def __init__(
        self, name: str, lexical: Retriever, dense: Retriever, ready: bool = False
    ) -> None:
        self.name, self.lexical, self.dense, self.ready = name, lexical, dense, ready
        self.items = 0

    def index(
        self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path | None = None
    ) -> None:
        """Index both, unless they are ``ready``; ``cache`` names this retriever's vectors file, the
        dense one's has the same folder.
        """
        if not self.ready:
            self.lexical.index(item_ids, item_texts)
            self.dense.index(
                item_ids, item_texts, cache and cache.with_name(f"{self.dense.name}.safetensors")
            )
        self.items = len(item_ids)

    def score(self, texts: Sequence[str], rows_BP: np.ndarray) -> np.ndarray:
        """Fused scores (B, P) float32 of rankings within each pool; see ``Retriever``."""
        rows_BP = check_rows(self.name, texts, rows_BP, self.items)
        lexical_BP = self.lexical.score(texts, rows_BP)
        fused_BP = reciprocal_ranks(np.where(lexical_BP > 0, lexical_BP, -np.inf))
        fused_BP += reciprocal_ranks(self.dense.score(texts, rows_BP))
        fused_BP[rows_BP < 0] = -np.inf
        return fused_BP.astype(np.float32)

    def search(self, texts: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Best of the two lists' union, each at least ``DEPTH`` deep; see ``Retriever``."""
        width, depth = min(top_k, self.items), min(max(top_k, DEPTH), self.items)
        rows_BK = np.zeros((len(texts), width), np.int64)
        scores_BK = np.zeros((len(texts), width), np.float32)
        # Some texts at a time: one row of sums over the whole catalogue each.
        step = max(1, 2_000_000 // self.items)
        for start in range(0, len(texts), step):
            some = texts[start : start + step]
            fused_BI = np.zeros((len(some), self.items))
            for part in (self.lexical, self.dense):
                part_BK, found_BK = part.search(some, depth)
                listed = (
                    found_BK > 0 if part is self.lexical else np.ones(found_BK.shape, dtype=bool)
                )
                ranks_BK = reciprocal_ranks(np.where(listed, found_BK, -np.inf))
                np.put_along_axis(
                    fused_BI,
                    part_BK,
                    np.take_along_axis(fused_BI, part_BK, axis=1) + ranks_BK,
                    axis=1,
                )
            rows_BK[start : start + step], scores_BK[start : start + step] = top_rows(
                fused_BI, width
            )
        return rows_BK, scores_BK
