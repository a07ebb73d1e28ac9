"""The search reward: nDCG of a request's candidate pool, ranked by a retriever for a search text."""

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ospo.retrieval.base import Retriever, check_scores

# Where a search text breaks into segments: , ; . ! ? and line ends, their full-width forms, bars and bullets. A comma
# or point inside a number or a word ("1,000", "5.5", "u.s") is none.
_BREAK = re.compile(r"[;!?\n\r|•·…，、。；！？]|[.,](?!\w)|(?<!\w)[.,]")
_RUN = re.compile(r"([^\w\s+])(?:\s*\1)+")  # "!!" or "- - -"; "c++" stays
_EDGE = " ,.:_~*=<>/\\-"


def search_text(answer: str) -> str:
    """What the retriever sees of an answer: segments joined by ", ", without the tricks that earn from form alone.

    White space and runs of punctuation collapse; a word that follows itself counts once; segments without a letter or
    digit, and those that came before (whatever their case), are dropped: "fit,,,, Fit ,fit fit" becomes "fit".
    Idempotent: ``search_text(search_text(x)) == search_text(x)``. Time is linear in the answer's length.
    """
    kept: dict[str, str] = {}
    for part in _BREAK.split(answer):
        words: list[str] = []
        for word in _RUN.sub(r"\1", part).split():
            if not words or words[-1].casefold() != word.casefold():
                words.append(word)
        segment = " ".join(words).strip(_EDGE)
        if any(map(str.isalnum, segment)):
            kept.setdefault(segment.casefold(), segment)
    return ", ".join(kept.values())


def _discounts(size: int) -> np.ndarray:
    return 1.0 / np.log2(np.arange(size) + 2.0)


def ideal_dcg(gains_BP: np.ndarray, k: int) -> np.ndarray:
    """DCG@k (B,) float64 of the best possible order of ``gains_BP``."""
    best_BK = -np.sort(-gains_BP.astype(np.float64), axis=1)[:, :k]
    return best_BK @ _discounts(best_BK.shape[1])


def ndcg(scores_BP: np.ndarray, gains_BP: np.ndarray, k: int, *, retriever: str = "") -> np.ndarray:
    """nDCG@k (B,) float64 with linear gains and log2 discounts.

    nDCG@k = Σ_{r ≤ k} gain_r / log2(r + 1), over the same sum in the best order (Järvelin & Kekäläinen, TOIS 2002).

    Args:
        scores_BP: retriever scores; higher ranks first, equal scores rank in pool order, -inf (padding) last.
        gains_BP: gains ≥ 0 aligned with the scores; a pool without any relevant item has nDCG 0.
        k: cut-off ≥ 1.
        retriever: named in errors.

    Raises ValueError for a NaN score or shapes that differ.
    """
    scores_BP, gains_BP = np.asarray(scores_BP), np.asarray(gains_BP)
    if scores_BP.shape != gains_BP.shape or scores_BP.ndim != 2:
        raise ValueError(f"ndcg: scores {scores_BP.shape} and gains {gains_BP.shape} must be one (B, P) shape")
    if k < 1:
        raise ValueError(f"ndcg: k must be at least 1, got {k}")
    if np.isnan(scores_BP).any():
        raise ValueError(f"retriever {retriever or '(unnamed)'}: returned NaN")
    order_BP = np.argsort(-scores_BP, axis=1, kind="stable")[:, :k]
    ranked_BK = np.take_along_axis(gains_BP, order_BP, axis=1).astype(np.float64)
    dcg_B = ranked_BK @ _discounts(ranked_BK.shape[1])
    ideal_B = ideal_dcg(gains_BP, k)
    return np.divide(dcg_B, ideal_B, out=np.zeros(len(dcg_B)), where=ideal_B > 0)


class SearchReward:
    """The reward of search texts, and the value of coalitions: one memoised path, so that v(N) equals R to the bit.

    Values are kept per (request row, ``search_text``) in a least-recently-used memo of ``cache_texts``.

    Attributes:
        hits, misses: texts answered from the memo (repeats within a call included), and those computed.
        seconds: wall time spent inside.
    """

    def __init__(self, retriever: Retriever, data: Any, k: int, cache_texts: int) -> None:
        self.retriever, self.data, self.k = retriever, data, k
        self.hits = self.misses = 0
        self.seconds = 0.0
        self._size = cache_texts
        self._memo: OrderedDict[tuple[int, str], float] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """Rewards (B,) float64 in [0, 1] of raw answers ``texts`` under request rows ``rows``; blank texts earn 0."""
        if len(texts) != len(rows):
            raise ValueError(f"reward: {len(texts)} texts but {len(rows)} request rows")
        started = time.perf_counter()
        with self._lock:
            try:
                return self._values(texts, rows)
            finally:
                self.seconds += time.perf_counter() - started

    def _values(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        seen = {text: search_text(text) for text in dict.fromkeys(texts)}
        keys = [(int(row), seen[text]) for text, row in zip(texts, rows, strict=True)]
        found: dict[tuple[int, str], float] = {}
        new: list[tuple[int, str]] = []
        for key in dict.fromkeys(keys):
            if not key[1]:
                found[key] = 0.0
            elif key in self._memo:
                self._memo.move_to_end(key)
                found[key] = self._memo[key]
            else:
                new.append(key)
        self.misses += len(new)
        self.hits += len(keys) - len(new)
        if new:
            new.sort()  # by request: texts of one pool lie together
            values = self._compute([text for _, text in new], np.array([row for row, _ in new], dtype=np.int64))
            fresh = dict(zip(new, values.tolist(), strict=True))
            found.update(fresh)
            self._memo.update(fresh)
            while len(self._memo) > self._size:
                self._memo.popitem(last=False)
        return np.array([found[key] for key in keys], dtype=np.float64)

    def _compute(self, texts: list[str], rows_B: np.ndarray) -> np.ndarray:
        if rows_B.min() < 0 or rows_B.max() >= len(self.data.pools_RP):
            raise ValueError(f"reward: a request row lies outside the {len(self.data.pools_RP)} requests")
        pools_BP = self.data.pools_RP[rows_B]
        scores_BP = check_scores(self.retriever.name, self.retriever.score(texts, pools_BP), pools_BP.shape)
        # Padding last whatever the retriever said of it: it holds no item.
        scores_BP = np.where(pools_BP < 0, -np.inf, scores_BP)
        return ndcg(scores_BP, self.data.gains_RP[rows_B], self.k, retriever=self.retriever.name)
