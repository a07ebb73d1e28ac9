"""What a retriever is, and the parts that every one of them shares."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Retriever(Protocol):
    """Ranks a catalogue for a search text. A user's own class needs these names and nothing else.

    ``linear`` says that a text's scores depend on the set of its distinct words alone and add up
    over them (see ``LinearRetriever``); a retriever that is not sure says False.
    """

    name: str
    linear: bool

    def index(
        self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path | None = None
    ) -> None:
        """Take in the catalogue; ``cache`` names a vectors file that may be reused where its
        fingerprint matches.
        """
        ...

    def score(self, texts: Sequence[str], rows_BP: np.ndarray) -> np.ndarray:
        """Scores (B, P) float32 of ``texts`` (B) over catalogue rows ``rows_BP`` (B, P) int; row -1
        scores -inf.
        """
        ...

    def search(self, texts: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Best ``top_k`` of the whole catalogue: rows (B, K) int64 and scores (B, K) float32, best
        first.

        Equal scores keep catalogue order. K is the smaller of ``top_k`` and the catalogue's size.
        """
        ...


@lru_cache(maxsize=1)
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[Any]:
    """NumPy's products on one thread within: a pool's are too small to share out.

    OpenBLAS would wake its other threads for each, and they wait for the next one by spinning:
    measured, that took more processor time than encoding the texts.
    """
    return _blas().limit(limits=1, user_api="blas")


def pool_runs(rows_BP: np.ndarray) -> Iterator[tuple[int, int]]:
    """Bounds (start, stop) of runs of equal neighbouring rows: texts of one request share one pool
    lookup.
    """
    if len(rows_BP) == 0:
        return
    changes = np.flatnonzero((rows_BP[1:] != rows_BP[:-1]).any(axis=1)) + 1
    bounds = [0, *changes.tolist(), len(rows_BP)]
    yield from itertools.pairwise(bounds)


def check_rows(name: str, texts: Sequence[str], rows_BP: Any, items: int) -> np.ndarray:
    """``rows_BP`` as an integer array (B, P); raises ValueError naming the retriever where it does
    not fit.
    """
    rows_BP = np.asarray(rows_BP)
    if rows_BP.ndim != 2 or len(rows_BP) != len(texts) or rows_BP.dtype.kind not in "iu":
        raise ValueError(
            f"retriever {name}: {len(texts)} texts need an integer array of as many rows, "
            f"got {rows_BP.dtype} {rows_BP.shape}"
        )
    if items == 0:
        raise ValueError(f"retriever {name}: score before index")
    if rows_BP.size and (rows_BP.max() >= items or rows_BP.min() < -1):
        raise ValueError(f"retriever {name}: a row lies outside the catalogue of {items} items")
    return rows_BP


def check_scores(name: str, scores: Any, shape: tuple[int, ...]) -> np.ndarray:
    """``scores`` as float32; raises ValueError naming the retriever on a wrong shape or a NaN."""
    array = np.asarray(scores)
    if array.shape != shape:
        raise ValueError(f"retriever {name}: scores have shape {array.shape}, expected {shape}")
    array = array.astype(np.float32, copy=False)
    if np.isnan(array).any():
        raise ValueError(
            f"retriever {name}: returned NaN for text {int(np.argwhere(np.isnan(array))[0][0])} of "
            "the batch"
        )
    return array


def top_rows(scores_BI: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (B, K) and scores (B, K) of the best ``top_k`` per row, best first, equal scores in
    column order.
    """
    items = scores_BI.shape[1]
    top_k = min(top_k, items)
    if top_k < items:
        # argpartition picks any of those equal to the last one: the threshold settles it, lowest
        # column first.
        threshold_B = -np.partition(-scores_BI, top_k - 1, axis=1)[:, top_k - 1]
        above_BI = scores_BI > threshold_B[:, None]
        level_BI = scores_BI == threshold_B[:, None]
        room_B = top_k - above_BI.sum(axis=1)
        keep_BI = above_BI | (level_BI & (np.cumsum(level_BI, axis=1) <= room_B[:, None]))
        rows_BK = np.nonzero(keep_BI)[1].reshape(len(scores_BI), top_k)
    else:
        rows_BK = np.tile(np.arange(items), (len(scores_BI), 1))
    kept_BK = np.take_along_axis(scores_BI, rows_BK, axis=1)
    order_BK = np.argsort(-kept_BK, axis=1, kind="stable")
    return np.take_along_axis(rows_BK, order_BK, axis=1), np.take_along_axis(
        kept_BK, order_BK, axis=1
    )
