"""Retrievers that users bring: loaded by import path, checked at each call, tried again where a
call fails, and completed where they leave something out.

What a class can do is declared by the protocols below and checked once, when it is loaded.
"""

import importlib
import logging
import pkgutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from ospo.config import Config
from ospo.errors import InputError, OspoError
from ospo.retrieval.base import (
    BlackBox,
    RetrieverError,
    check_found_rows,
    check_rows,
    check_scores,
    top_rows,
)

LOGGER = logging.getLogger("ospo.retrieval")
# A failed call is tried again after each of these; a service that restarts is back within them.
BACK_OFF_SECONDS: tuple[float, ...] = (1.0, 5.0, 25.0)
_FIX = "see docs/retrievers.md for a retriever in 20 lines"

Result = TypeVar("Result")


@runtime_checkable
class Indexes(Protocol):
    """Takes in the catalogue. Required."""

    def index(
        self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path | None = None
    ) -> None:
        """See ``Retriever.index``."""
        ...


@runtime_checkable
class Scores(Protocol):
    """Scores items for texts. Required."""

    def score(self, texts: Sequence[str], rows_BP: np.ndarray) -> Any:
        """One number per text and item, (B, P); what stands at row -1 is not looked at."""
        ...


@runtime_checkable
class Searches(Protocol):
    """Ranks the whole catalogue. Optional: without it every item is scored."""

    def search(self, texts: Sequence[str], top_k: int) -> tuple[Any, Any]:
        """See ``Retriever.search``."""
        ...


class CustomRetriever:
    """Wraps a user's object, which is ``Indexes`` and ``Scores`` and perhaps ``Searches``.

    Raises RetrieverError (one line with the class's name) where a result is wrong, see
    ``check_scores``, or where a call still fails after ``BACK_OFF_SECONDS``. Warns once, with the
    share, where all items of a pool get the same score: such a text earns the same whatever it
    says. ``linear`` is False: the user's scores come with no promise of exact sums.
    """

    linear = False

    def __init__(self, name: str, inner: object) -> None:
        self.name, self.items = name, 0
        self._pools = self._constant_pools = 0
        self._warned = False
        if not isinstance(inner, Indexes) or not callable(inner.index):
            raise self._lacks("index")
        if not isinstance(inner, Scores) or not callable(inner.score):
            raise self._lacks("score")
        self._index: Indexes = inner
        self._score: Scores = inner
        self._search: Searches | None = inner if isinstance(inner, Searches) else None

    def _lacks(self, method: str) -> InputError:
        return InputError(
            "params.yaml", f"retrievers: {self.name}", f"has no method {method}()", _FIX
        )

    def index(
        self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path | None = None
    ) -> None:
        """Index the user's retriever; see ``Retriever``."""
        self._call("index", lambda: self._index.index(item_ids, item_texts, cache))
        self.items = len(item_ids)

    def score(self, texts: Sequence[str], rows_BP: np.ndarray) -> np.ndarray:
        """The user's scores, checked; see ``Retriever``."""
        rows_BP = check_rows(self.name, texts, rows_BP, self.items)
        scores = self._call("score", lambda: self._score.score(texts, rows_BP))
        scores_BP = check_scores(self.name, scores, rows_BP)
        self._look_for_constants(scores_BP)
        return scores_BP

    def search(self, texts: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """The user's search, or the best of all items' scores; see ``Retriever``."""
        width = min(top_k, self.items)
        if (own := self._search) is not None:
            found = self._call("search", lambda: own.search(texts, top_k))
            if not isinstance(found, tuple | list) or len(found) != 2:
                problem = f"search() returned {type(found).__name__}, expected (rows, scores)"
                raise RetrieverError(self.name, problem, _FIX)
            rows_BK = check_found_rows(self.name, found[0], (len(texts), width), self.items)
            return rows_BK, check_scores(self.name, found[1], rows_BK)
        rows_BK = np.zeros((len(texts), width), np.int64)
        scores_BK = np.zeros((len(texts), width), np.float32)
        chunk = max(1, 2_000_000 // max(self.items, 1))
        for start in range(0, len(texts), chunk):
            part = texts[start : start + chunk]
            scores_BI = self.score(part, np.tile(np.arange(self.items), (len(part), 1)))
            rows_BK[start : start + chunk], scores_BK[start : start + chunk] = top_rows(
                scores_BI, top_k
            )
        return rows_BK, scores_BK

    def _call(self, method: str, call: Callable[[], Result]) -> Result:
        """``call``, tried again with growing pauses where it raises; RetrieverError at last."""
        for pause in (*BACK_OFF_SECONDS, None):
            try:
                return call()
            except OspoError:  # the class says itself what is wrong
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"[:300]
                if pause is None:
                    raise RetrieverError(
                        self.name,
                        f"{method}() failed {len(BACK_OFF_SECONDS) + 1} times, last with {reason}",
                        "repair the class or the service it calls, then run the same command again",
                    ) from error
                LOGGER.warning(
                    "retriever %r: %s() failed (%s); trying again in %g s",
                    self.name,
                    method,
                    reason,
                    pause,
                )
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _look_for_constants(self, scores_BP: np.ndarray) -> None:
        """Count pools of two items or more whose scores are all equal; warn at the first."""
        if self._warned or not scores_BP.size:
            return
        real_BP = np.isfinite(scores_BP)
        several_B = real_BP.sum(axis=1) > 1
        highest_B = scores_BP.max(axis=1)
        lowest_B = np.where(real_BP, scores_BP, np.inf).min(axis=1)
        self._pools += int(several_B.sum())
        self._constant_pools += int((several_B & (highest_B == lowest_B)).sum())
        if self._constant_pools:
            self._warned = True
            LOGGER.warning(
                "retriever %r: all items have the same score in %d of %d pools so far (%.0f %%); "
                "such a text's reward says nothing about it",
                self.name,
                self._constant_pools,
                self._pools,
                100 * self._constant_pools / self._pools,
            )


class CustomBlackBox(CustomRetriever, BlackBox):
    """Of a user's class that declares itself a ``BlackBox``."""


def import_retriever(name: str, config: Config) -> CustomRetriever:
    """``package.module:Class``, made as ``Class(config)``. Raises InputError (one line) where that
    fails.
    """
    field = f"retrievers: {name}"
    module, _, attribute = name.partition(":")
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever the user's module raises
        problem = f"cannot be imported ({type(error).__name__}: {error})"
        raise InputError("params.yaml", field, problem, _FIX) from error
    try:
        maker = pkgutil.resolve_name(name)
    except AttributeError as error:
        problem = f"module {module} has no class {attribute!r}"
        raise InputError("params.yaml", field, problem, _FIX) from error
    if not callable(maker):
        raise InputError("params.yaml", field, f"{attribute!r} is no class", _FIX)
    try:
        inner = maker(config)
    except InputError:
        raise
    except Exception as error:
        problem = f"fails to load: {type(error).__name__}: {error}"
        raise InputError("params.yaml", field, problem, "mend its __init__(config)") from error
    wrapper = CustomBlackBox if isinstance(inner, BlackBox) else CustomRetriever
    return wrapper(name, inner)
