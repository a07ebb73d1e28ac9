"""Retrievers that users bring: by import path, checked at each call, with what they leave out
filled in.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ospo.config import Config
from ospo.errors import InputError
from ospo.retrieval.base import check_rows, check_scores, top_rows

_FIX = "see docs/retrievers.md for a retriever in 20 lines"


class CustomRetriever:
    """Wraps a user's object with ``index`` and ``score`` (``search``, ``name`` and ``linear`` are
    optional).

    Scores of a wrong shape or with NaN raise ValueError naming the retriever. Without a ``search``
    of its own, the whole catalogue is scored. ``linear`` is False: the user's scores come with no
    promise of exact sums.
    """

    linear = False

    def __init__(self, name: str, inner: object) -> None:
        self.name, self.items = name, 0
        for method in ("index", "score"):
            if not callable(getattr(inner, method, None)):
                raise InputError(
                    "params.yaml", f"retrievers: {name}", f"has no method {method}()", _FIX
                )
        self.inner = inner

    def index(
        self, item_ids: Sequence[str], item_texts: Sequence[str], cache: Path | None = None
    ) -> None:
        """Index the user's retriever; see ``Retriever``."""
        self.inner.index(item_ids, item_texts, cache)  # type: ignore[attr-defined]
        self.items = len(item_ids)

    def score(self, texts: Sequence[str], rows_BP: np.ndarray) -> np.ndarray:
        """The user's scores, checked; see ``Retriever``."""
        rows_BP = check_rows(self.name, texts, rows_BP, self.items)
        scores_BP = check_scores(self.name, self.inner.score(texts, rows_BP), rows_BP.shape)  # type: ignore[attr-defined]
        return np.where(rows_BP < 0, np.float32(-np.inf), scores_BP)

    def search(self, texts: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """The user's search, or the best of all items' scores; see ``Retriever``."""
        width = min(top_k, self.items)
        if callable(own := getattr(self.inner, "search", None)):
            rows_BK, scores_BK = own(texts, top_k)
            rows_BK = np.asarray(rows_BK)
            if rows_BK.shape != (len(texts), width) or rows_BK.dtype.kind not in "iu":
                raise ValueError(
                    f"retriever {self.name}: search gave {rows_BK.shape} rows, not "
                    f"{(len(texts), width)}"
                )
            return rows_BK.astype(np.int64), check_scores(self.name, scores_BK, rows_BK.shape)
        rows_BK, scores_BK = (
            np.zeros((len(texts), width), np.int64),
            np.zeros((len(texts), width), np.float32),
        )
        chunk = max(1, 2_000_000 // max(self.items, 1))
        for start in range(0, len(texts), chunk):
            part = texts[start : start + chunk]
            scores_BI = self.score(part, np.tile(np.arange(self.items), (len(part), 1)))
            rows_BK[start : start + chunk], scores_BK[start : start + chunk] = top_rows(
                scores_BI, top_k
            )
        return rows_BK, scores_BK


def import_retriever(name: str, config: Config) -> CustomRetriever:
    """``package.module:Class``, made as ``Class(config)``. Raises InputError (one line) where that
    fails.
    """
    field = f"retrievers: {name}"
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError("params.yaml", field, f"cannot be imported ({error})", _FIX) from error
    maker = getattr(module, attribute, None)
    if not callable(maker):
        raise InputError(
            "params.yaml", field, f"module {module_name} has no class {attribute!r}", _FIX
        )
    try:
        inner = maker(config)
    except InputError:
        raise
    except Exception as error:
        problem = f"fails to load: {type(error).__name__}: {error}"
        raise InputError("params.yaml", field, problem, "mend its __init__(config)") from error
    return CustomRetriever(name, inner)
