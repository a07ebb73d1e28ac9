"""The search reward: nDCG of a request's candidate pool, ranked by a retriever for a search
text.
"""

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from ospo.credit.values import CoalitionValues, PoolScores
from ospo.data.dataset import PreparedData
from ospo.policy.text import search_text
from ospo.retrieval.base import BlackBox, Retriever, checked_scores, one_blas_thread
from ospo.retrieval.linear import LinearRetriever
from ospo.reward.measures import Measure, Own
from ospo.reward.ndcg import dcg, ideal_dcg, ratio
from ospo.reward.protocol import Counts, Reward

FEW = 16
CHUNK = 1024  # texts ranked together: a block of scores then stays in the processor's cache


class SearchReward(Reward):
    """The reward of search texts, and the value of coalitions: one memoised path, so that v(N)
    equals R to the bit.

    Values are kept per (request row, ``search_text``) in a least-recently-used memo of
    ``cache_texts``.

    A linear retriever's coalitions are scored from their parts (``coalitions``); a retriever's pool
    scores are shown (``pool``), unless it is a ``BlackBox``. Nothing is taken off (``price``).
    ``seconds``: wall time spent inside.

    ``whole``, in [0, 1]: a text's value is ``whole`` times nDCG over the whole pool, the rest
    nDCG@k. nDCG@k says nothing of an item that stays outside the first k ranks; the pool's does.
    ``measure`` stands in nDCG@k's place where it is given; a function of the user's sees texts too,
    so that neither coalitions nor scores are shown then.
    Rewards, coalitions and ``measure`` all have that value.
    """

    def __init__(
        self,
        retriever: Retriever,
        data: PreparedData,
        k: int,
        cache_texts: int,
        whole: float = 0.0,
        measure: Measure | None = None,
    ) -> None:
        self.retriever, self.data, self.k, self.whole = retriever, data, k, whole
        self._measure = measure
        self._hits = self._misses = 0
        self.seconds = 0.0
        self._size = cache_texts
        self._memo: OrderedDict[tuple[int, str], float] = OrderedDict()
        pool = data.gains_RP.shape[1]
        # (cut-off, weight, ideal DCG of each request) of each nDCG in the value
        self._parts = [
            (cut, weight, ideal_dcg(data.gains_RP, cut))
            for cut, weight in ((k, (1.0 - whole) * (measure is None)), (pool, whole))
            if weight
        ]
        self._lock = threading.Lock()

    price = None

    @property
    def coalitions(self) -> CoalitionValues | None:
        """Values of coalitions from their units' words; None where the retriever is not linear."""
        linear = isinstance(self.retriever, LinearRetriever) and not isinstance(self._measure, Own)
        return self._coalition_values if linear else None

    @property
    def pool(self) -> PoolScores | None:
        """The retriever's scores behind the rewards; None where it is a black box."""
        hidden = isinstance(self.retriever, BlackBox) or isinstance(self._measure, Own)
        return None if hidden else self

    @property
    def counts(self) -> Counts:
        """Texts answered from the memo (repeats within a call included), and those computed."""
        return Counts(self._hits, self._misses)

    def __call__(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """Rewards (B,) float64 in [0, 1] of raw answers ``texts`` under request rows ``rows``;
        blank texts earn 0.
        """
        rows_B = self._check(rows, texts=texts)
        started = time.perf_counter()
        with self._lock:
            try:
                return self._values(texts, rows_B)
            finally:
                self.seconds += time.perf_counter() - started

    def pool_scores(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """The retriever's scores (B, P) float32 behind the rewards of ``texts``; padding -inf,
        blank texts 0.

        For credit estimators that infer rewards from scores. Encoders remember vectors, so that
        texts whose reward was just given cost one matrix product.
        """
        rows_B = self._check(rows, texts=texts)
        pools_BP = self.data.pools_RP[rows_B]
        scores_BP = np.zeros(pools_BP.shape, dtype=np.float32)
        cleaned = [search_text(text) for text in texts]
        said = [b for b, text in enumerate(cleaned) if text]
        if said:
            started = time.perf_counter()
            with self._lock:
                scores_BP[said] = checked_scores(
                    self.retriever, [cleaned[b] for b in said], pools_BP[said]
                )
                self.seconds += time.perf_counter() - started
        scores_BP[pools_BP < 0] = -np.inf
        return scores_BP

    def measure(self, scores_MP: np.ndarray, row: int) -> np.ndarray:
        """The value (M,) float64 of given scores of one request's pool, (M, P) in pool order."""
        rows_M = self._check([row] * len(scores_MP))
        return self._mixed(np.ascontiguousarray(scores_MP.T, dtype=np.float32), rows_M)

    def forget(self) -> None:
        """Empty the memo; the counters stay."""
        with self._lock:
            self._memo.clear()

    def _check(self, rows: Sequence[int], **others: Sequence[object]) -> np.ndarray:
        for name, given in others.items():
            if len(given) != len(rows):
                raise ValueError(f"reward: {len(given)} {name} but {len(rows)} request rows")
        rows_B = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(rows_B) and (rows_B.min() < 0 or rows_B.max() >= len(self.data.pools_RP)):
            raise ValueError(
                f"reward: a request row lies outside the {len(self.data.pools_RP)} requests"
            )
        return rows_B

    def _values(self, texts: Sequence[str], rows_B: np.ndarray) -> np.ndarray:
        memo = self._memo
        seen = {text: search_text(text) for text in dict.fromkeys(texts)}
        keys = [(row, seen[text]) for text, row in zip(texts, rows_B.tolist(), strict=True)]
        found: dict[tuple[int, str], float] = {}
        new: list[tuple[int, str]] = []
        for key in dict.fromkeys(keys):
            if not key[1]:
                found[key] = 0.0
            elif key in memo:
                memo.move_to_end(key)
                found[key] = memo[key]
            else:
                new.append(key)
        self._misses += len(new)
        self._hits += len(keys) - len(new)
        if new:
            new.sort()  # by request: texts of one pool lie together
            values = self._compute([text for _, text in new], np.array([row for row, _ in new]))
            fresh = dict(zip(new, values.tolist(), strict=True))
            found.update(fresh)
            memo.update(fresh)
            while len(memo) > self._size:
                memo.popitem(last=False)
        return np.array([found[key] for key in keys], dtype=np.float64)

    def _compute(self, texts: list[str], rows_B: np.ndarray) -> np.ndarray:
        pools_BP = self.data.pools_RP[rows_B]
        scores_BP = checked_scores(self.retriever, texts, pools_BP)
        return self._mixed(np.ascontiguousarray(scores_BP.T), rows_B, texts)

    def _mixed(
        self, scores_PB: np.ndarray, rows_B: np.ndarray, texts: Sequence[str] = ()
    ) -> np.ndarray:
        """The value (B,) of pools scored for request rows ``rows_B``, sorted."""
        values_B = np.zeros(len(rows_B))
        for cut, weight, ideal_R in self._parts:
            values_B += weight * ratio(self._dcg(scores_PB, rows_B, cut), ideal_R[rows_B])
        if self._measure is not None and self.whole < 1:
            values_B += (1.0 - self.whole) * self._measured(scores_PB, rows_B, texts)
        return values_B

    def _measured(
        self, scores_PB: np.ndarray, rows_B: np.ndarray, texts: Sequence[str]
    ) -> np.ndarray:
        """The measure (B,) in nDCG@k's place."""
        gains_PB = self.data.gains_RP[rows_B].T
        if isinstance(self._measure, Own):
            return self._measure(scores_PB, gains_PB, texts)
        assert self._measure is not None
        return self._measure(scores_PB, gains_PB)

    def _dcg(self, scores_PB: np.ndarray, rows_B: np.ndarray, cut: int) -> np.ndarray:
        """DCG@cut (B,) of pools scored for request rows ``rows_B``, sorted."""
        gains_RP, dcg_B = self.data.gains_RP, np.empty(len(rows_B))
        bounds = [0, *(np.flatnonzero(np.diff(rows_B)) + 1).tolist(), len(rows_B)]
        # Long runs of one request share its gains; short ones, as in evaluation, are ranked
        # together.
        if len(rows_B) < FEW * (len(bounds) - 1):
            bounds = [0, len(rows_B)]
        for first, last in itertools.pairwise(bounds):
            same = rows_B[first] == rows_B[last - 1]
            for start in range(first, last, CHUNK):
                part = slice(start, min(start + CHUNK, last))
                gains_PB = gains_RP[rows_B[first : first + 1] if same else rows_B[part]].T
                dcg_B[part] = dcg(
                    np.ascontiguousarray(scores_PB[:, part]), np.ascontiguousarray(gains_PB), cut
                )
        return dcg_B

    def _coalition_values(
        self, units: Sequence[Sequence[str]], rows: Sequence[int], masks: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Values of coalitions from their units' words, without reading a coalition's text.

        Args:
            units: the segments' texts of each answer (B lists of n_b).
            rows: request row of each answer (B).
            masks: coalitions of each answer, (C_b, n_b) bool.

        Returns one (C_b,) float64 array an answer, equal bit for bit to this reward of the units
        joined by spaces.
        """
        rows_B = self._check(rows, units=units, masks=masks)
        started = time.perf_counter()
        with self._lock, one_blas_thread():
            try:
                return self._linear_values(
                    units, rows_B, [np.asarray(mask, dtype=bool) for mask in masks]
                )
            finally:
                self.seconds += time.perf_counter() - started

    def _linear_values(
        self, units: Sequence[Sequence[str]], rows_B: np.ndarray, masks: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        retriever = self.retriever
        assert isinstance(retriever, LinearRetriever)
        for b, (parts, mask_CN) in enumerate(zip(units, masks, strict=True)):
            if mask_CN.ndim != 2 or mask_CN.shape[1] != len(parts):
                raise ValueError(
                    f"coalitions: answer {b} has {len(parts)} units but masks of shape "
                    f"{mask_CN.shape}"
                )
        flat = list(dict.fromkeys(unit for parts in units for unit in parts))
        cleaned = [search_text(unit) for unit in flat]
        terms = dict(zip(flat, retriever.terms(cleaned), strict=True))
        blank = {unit for unit, text in zip(flat, cleaned, strict=True) if not text}
        counts = [len(mask_CN) for mask_CN in masks]
        self._misses += sum(counts)
        pool = self.data.pools_RP.shape[1]
        values: list[np.ndarray] = [np.zeros(count) for count in counts]
        none = np.zeros(0, dtype=np.int64)
        for row, members in _by_row(rows_B):
            padding_P = self.data.pools_RP[row] < 0
            held = [terms[unit] for b in members for unit in units[b]]
            words_V, word = np.unique(np.concatenate([*held, none]), return_inverse=True)
            owner = np.repeat(np.arange(len(held)), [len(ids) for ids in held])
            holds_UV = np.zeros(
                (len(held), len(words_V)), dtype=np.float32
            )  # units × words, of all members
            holds_UV[owner, word] = 1.0
            scores_VP = retriever.term_scores(words_V, self.data.pools_RP[row])
            scores_PC = np.empty((pool, sum(counts[b] for b in members)), dtype=np.float32)
            start = first = 0
            for b in members:
                unit_NV = holds_UV[first : first + len(units[b])]
                here_V = np.flatnonzero(unit_NV.any(axis=0))
                # A word counts once, however many units of the coalition hold it.
                present_CV = (masks[b].astype(np.float32) @ unit_NV[:, here_V]) > 0
                scores_PC[:, start : start + counts[b]] = scores_VP[here_V].T @ present_CV.T.astype(
                    np.float64
                )
                start, first = start + counts[b], first + len(units[b])
            scores_PC[padding_P] = -np.inf
            at_C = self._mixed(scores_PC, np.full(start, row))
            start = 0
            for b in members:
                says_N = np.array([unit not in blank for unit in units[b]], dtype=bool)
                heard_C = (masks[b] & says_N).any(axis=1)  # blank texts earn 0
                values[b] = np.where(heard_C, at_C[start : start + counts[b]], 0.0)
                start += counts[b]
        return values


def _by_row(rows_B: np.ndarray) -> Iterable[tuple[int, list[int]]]:
    """Answers grouped by request row: (row, their positions)."""
    groups: dict[int, list[int]] = {}
    for b, row in enumerate(rows_B.tolist()):
        groups.setdefault(row, []).append(b)
    return groups.items()
