"""What a retriever is, what is checked of every one, and the parts that they share."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl

from ospo.errors import OspoError, printable


class RetrieverError(OspoError):
    """A retriever that fails or breaks its contract while it works; one line names it and the
    problem.
    """

    def __init__(self, name: str, problem: str, fix: str) -> None:
        self.name, self.problem, self.fix = name, problem, fix
        line = f"retriever {name!r}: {problem}. Fix: {fix}"
        super().__init__(printable(line))

    def __reduce__(self) -> tuple[type, tuple[str, ...]]:
        return type(self), (self.name, self.problem, self.fix)


@runtime_checkable
class Retriever(Protocol):
    """Ranks a catalogue for a search text. What training and evaluation call; a class of a user's
    own needs less, see ``ospo.retrieval.custom``.

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


class ReadsFields(ABC):
    """A retriever that wants the fields of items, not their texts alone."""

    @abstractmethod
    def index_fields(self, catalogue: pl.DataFrame) -> None:
        """Take in a prepared catalogue (``ospo.data.schemas.CATALOGUE_SCHEMA``), in row order."""


class BlackBox:
    """A retriever that answers with its ranking and shows no scores to infer others from: asking it
    is dear, and what its scores mean is its own affair. Credit then needs an estimator of values
    alone (``bayes``).
    """


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


def check_scores(name: str, scores: Any, rows_BP: np.ndarray) -> np.ndarray:
    """``scores`` as (B, P) float32, -inf where ``rows_BP`` is -1 (padding), whatever stood there.

    ``scores`` may be anything that a retriever returned. Raises RetrieverError, which names the
    retriever and the first wrong text (counted from 0), for scores that are no numbers, of another
    shape, or not finite as float32.
    """
    array = _as_numbers(name, scores, rows_BP.shape)
    if not array.size and not rows_BP.size:
        return np.zeros(rows_BP.shape, dtype=np.float32)
    if array.shape != rows_BP.shape:
        raise RetrieverError(
            name,
            f"scores have shape {array.shape}, expected {rows_BP.shape}",
            "return one score per text and item",
        )
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found below
        scores_BP = array.astype(np.float32)
    scores_BP[rows_BP < 0] = -np.inf
    bad_BP = ~np.isfinite(scores_BP) & (rows_BP >= 0)
    if bad_BP.any():
        text, place = (int(at) for at in np.argwhere(bad_BP)[0])
        raise RetrieverError(
            name,
            f"returned {_what(array[text, place])} for text {text}, item {place} of its pool "
            f"({int(bad_BP.sum())} such scores in {int(bad_BP.any(axis=1).sum())} of "
            f"{len(rows_BP)} texts)",
            "score every item of a pool with a finite number; the least relevant may get 0",
        )
    return scores_BP


def _what(value: Any) -> str:
    """What stands in place of a finite float32."""
    if np.isnan(value):
        return "NaN"
    return f"{'-' if value < 0 else ''}infinity" if np.isinf(value) else f"{value}, beyond float32"


def _as_numbers(name: str, scores: Any, shape: tuple[int, ...]) -> np.ndarray:
    """``scores`` as an array of numbers; RetrieverError names the first text that has others."""
    fix = "return one number per text and item, all texts alike"
    try:
        array = np.asarray(scores)
    except (ValueError, TypeError, RuntimeError) as error:
        array, reason = None, str(error)
    if array is not None and (array.dtype.kind in "biuf" or array.size == 0):
        return array
    if array is not None:
        reason = f"scores are of type {array.dtype}"
    if not isinstance(scores, Sequence | np.ndarray) or isinstance(scores, str):
        raise RetrieverError(name, f"score() returned {type(scores).__name__}: {reason}", fix)
    for text, row in enumerate(scores):
        try:
            row_P = np.asarray(row)
        except (ValueError, TypeError, RuntimeError):
            raise RetrieverError(name, f"scores of text {text} are ragged", fix) from None
        if row_P.dtype.kind not in "biuf":
            held = np.ravel(row_P).tolist()
            wrong = next((value for value in held if not isinstance(value, int | float)), held[0])
            problem = f"scores of text {text} are no numbers, such as {wrong!r}"
            raise RetrieverError(name, problem[:300], fix)
        if row_P.shape != shape[1:]:
            problem = f"scores of text {text} have shape {row_P.shape}, expected {shape[1:]}"
            raise RetrieverError(name, problem, fix)
    raise RetrieverError(name, reason, fix)


def checked_scores(retriever: Retriever, texts: Sequence[str], rows_BP: np.ndarray) -> np.ndarray:
    """``retriever.score``, checked by ``check_scores``; RetrieverError also where it raises
    ValueError.
    """
    try:
        scores = retriever.score(texts, rows_BP)
    except ValueError as error:
        raise RetrieverError(
            retriever.name, str(error), "repair it, or take it out of params.yaml's retrievers"
        ) from error
    return check_scores(retriever.name, scores, rows_BP)


def checked_search(
    retriever: Retriever, texts: Sequence[str], top_k: int, items: int
) -> tuple[np.ndarray, np.ndarray]:
    """``retriever.search`` over a catalogue of ``items``: rows (B, K) and scores (B, K).

    Raises RetrieverError for another shape, unknown or repeated rows, and scores that are not
    finite or not in order.
    """
    rows_BK, scores_BK = retriever.search(texts, top_k)
    rows_BK = check_found_rows(retriever.name, rows_BK, (len(texts), min(top_k, items)), items)
    scores_BK = check_scores(retriever.name, scores_BK, rows_BK)
    if (unordered := (np.diff(scores_BK, axis=1) > 0).any(axis=1)).any():
        raise RetrieverError(
            retriever.name,
            f"search() returned scores out of order for text {int(unordered.argmax())}",
            "return the best first",
        )
    return rows_BK, scores_BK


def check_found_rows(name: str, rows: Any, shape: tuple[int, int], items: int) -> np.ndarray:
    """The rows that a search found as int64; RetrieverError for another shape or type, unknown or
    repeated rows.
    """
    try:
        rows_BK = np.asarray(rows)
    except ValueError as error:
        raise RetrieverError(
            name, f"rows of search() are ragged ({error})", "return as many rows for each text"
        ) from None
    if rows_BK.shape != shape or rows_BK.dtype.kind not in "iu":
        raise RetrieverError(
            name,
            f"search() returned rows of shape {rows_BK.shape} and type {rows_BK.dtype}, expected "
            f"integers {shape}",
            "return the best top_k rows, or the whole catalogue where it is smaller",
        )
    ordered = np.sort(rows_BK, axis=1)
    wrong_B = ((ordered < 0) | (ordered >= items)).any(axis=1)
    wrong_B |= (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if wrong_B.any():
        raise RetrieverError(
            name,
            f"search() returned unknown or repeated rows for text {int(wrong_B.argmax())}",
            f"each must be a distinct catalogue row, 0 to {items - 1}",
        )
    return rows_BK.astype(np.int64, copy=False)


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
        left_B = top_k - above_BI.sum(axis=1)
        keep_BI = above_BI | (level_BI & (np.cumsum(level_BI, axis=1) <= left_B[:, None]))
        rows_BK = np.nonzero(keep_BI)[1].reshape(len(scores_BI), top_k)
    else:
        rows_BK = np.tile(np.arange(items), (len(scores_BI), 1))
    kept_BK = np.take_along_axis(scores_BI, rows_BK, axis=1)
    order_BK = np.argsort(-kept_BK, axis=1, kind="stable")
    return np.take_along_axis(rows_BK, order_BK, axis=1), np.take_along_axis(
        kept_BK, order_BK, axis=1
    )


def filled_up(
    rows: np.ndarray, scores: np.ndarray, width: int, items: int, rest: float
) -> tuple[np.ndarray, np.ndarray]:
    """The hits of a search, best first, equal scores in catalogue order, filled up to ``width``
    with the first items that it did not find, which score ``rest``.
    """
    order = np.lexsort((rows, -scores))
    rows, scores = rows[order], scores[order]
    if (missing := width - len(rows)) <= 0:
        return rows[:width], scores[:width]
    others = np.setdiff1d(np.arange(min(items, width + len(rows))), rows)[:missing]
    return np.concatenate([rows, others]), np.concatenate(
        [scores, np.full(missing, rest, np.float32)]
    )
