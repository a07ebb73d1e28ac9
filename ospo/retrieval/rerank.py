"""A cross-encoder as re-ranker: it reads text and item together, which is too slow for more than a
first stage's best items.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ospo.errors import InputError
from ospo.retrieval.base import Retriever, check_rows, check_scores
from ospo.retrieval.sentence import refuse_pickles

DEPTH = 100


class RerankRetriever:
    """Scores of a sentence-transformers cross-encoder for the ``DEPTH`` best items of ``first``.

    Items below that keep the first stage's order, under all re-ranked ones. A pair's score does not
    depend on the other pairs beyond rounding: batches are padded.
    """

    linear = False

    def __init__(
        self, name: str, source: str, first: Retriever, depth: int = DEPTH, ready: bool = False
    ) -> None:
        from sentence_transformers import CrossEncoder

        self.name, self.first, self.depth, self.ready, self.items = name, first, depth, ready, 0
        refuse_pickles(Path(source), name)
        try:
            self._model = CrossEncoder(
                source,
                num_labels=1,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                source,
                "",
                f"retriever {name} fails to load: {reason[:200]}",
                "name a cross-encoder model or folder",
            ) from error

    def index(
        self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path | None = None
    ) -> None:
        """Index the first stage, unless it is ``ready``, and keep the items' texts; see
        ``Retriever``.
        """
        if not self.ready:
            self.first.index(item_ids, item_texts, cache)
        self._texts, self.items = list(item_texts), len(item_ids)

    def _rerank(self, texts: Sequence[str], rows_BK: np.ndarray) -> np.ndarray:
        pairs = [
            (text, self._texts[row])
            for text, rows in zip(texts, rows_BK, strict=True)
            for row in rows
        ]
        scores = self._model.predict(pairs, show_progress_bar=False) if pairs else np.zeros(0)
        return check_scores(self.name, np.asarray(scores).reshape(rows_BK.shape), rows_BK)

    def score(self, texts: Sequence[str], rows_BP: np.ndarray) -> np.ndarray:
        """Scores (B, P) float32; see ``Retriever``."""
        rows_BP = check_rows(self.name, texts, rows_BP, self.items)
        first_BP = self.first.score(texts, rows_BP)
        order_BP = np.argsort(-first_BP, axis=1, kind="stable")
        head_BK, tail_BT = order_BP[:, : self.depth], order_BP[:, self.depth :]
        scores_BP = np.empty(rows_BP.shape, dtype=np.float32)
        best_BK = self._rerank(texts, np.maximum(np.take_along_axis(rows_BP, head_BK, axis=1), 0))
        np.put_along_axis(scores_BP, head_BK, best_BK, axis=1)
        below = (
            best_BK.min(axis=1, keepdims=True) - 1 - np.arange(tail_BT.shape[1], dtype=np.float32)
        )
        np.put_along_axis(scores_BP, tail_BT, below, axis=1)
        scores_BP[rows_BP < 0] = -np.inf
        return scores_BP

    def search(self, texts: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """The first stage's best, re-ranked; see ``Retriever``."""
        rows_BK, _ = self.first.search(texts, top_k)
        scores_BK = self.score(texts, rows_BK)
        order_BK = np.argsort(-scores_BK, axis=1, kind="stable")
        return np.take_along_axis(rows_BK, order_BK, axis=1), np.take_along_axis(
            scores_BK, order_BK, axis=1
        )
