"""What a ranking is worth: the measure that ``reward.measure`` names, in ir_measures' notation, or
a function of one's own.

``nDCG`` (nDCG at ``reward.k``, the default) and ``nDCG@10`` use graded gains; ``RR@10``, ``R@50``
and ``AP`` count every item with a gain above 0 as relevant, as trec_eval does. All are over a
request's candidate pool; equal scores keep the pool's order, and a request without relevant items
earns 0.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ospo.config import RANKED_MEASURE
from ospo.errors import InputError

OwnMeasure = Callable[[np.ndarray, Sequence[str]], np.ndarray]
"""(gains (B, P) float64 of each pool's items in ranked order, best rank first and padding 0;
search texts (B,)) → values (B,) float in [0, 1]."""
_FIX = "name nDCG@10, RR@10, R@50, AP, or module:function"


@dataclass(frozen=True)
class Ranked:
    """A measure of ranks alone. ``values``: (whether a relevant item stands on each rank (P, B)
    bool, relevant items (B,) int, cut-off) → (B,) float64.
    """

    name: str
    cut: int
    values: Callable[[np.ndarray, np.ndarray, int], np.ndarray]

    def __call__(self, scores_PB: np.ndarray, gains_PB: np.ndarray) -> np.ndarray:
        """The measure (B,) of pools with these scores and gains, (P, B)."""
        order_PB = np.argsort(-scores_PB, axis=0, kind="stable")
        hits_PB = np.take_along_axis(gains_PB > 0, order_PB, axis=0)
        return self.values(hits_PB, hits_PB.sum(axis=0), self.cut)


@dataclass(frozen=True)
class Own:
    """A function of the user's."""

    name: str
    function: OwnMeasure

    def __call__(
        self, scores_PB: np.ndarray, gains_PB: np.ndarray, texts: Sequence[str]
    ) -> np.ndarray:
        """Its values (B,). Raises InputError where they are of another shape, not finite, or
        outside [0, 1].
        """
        order_PB = np.argsort(-scores_PB, axis=0, kind="stable")
        ranked_BP = np.take_along_axis(gains_PB, order_PB, axis=0).T.astype(np.float64)
        found = np.asarray(self.function(np.ascontiguousarray(ranked_BP), list(texts)))
        problem = ""
        if found.shape != (len(texts),) or not np.issubdtype(found.dtype, np.number):
            problem = f"returns {found.dtype} of shape {found.shape}, not {len(texts)} numbers"
        elif not np.isfinite(found).all() or found.min(initial=0) < 0 or found.max(initial=0) > 1:
            problem = "returns a value that is not within [0, 1]"
        if problem:
            raise InputError("params.yaml", f"reward.measure: {self.name}", problem, "mend it")
        return found.astype(np.float64)


Measure = Ranked | Own


def _reciprocal_rank(hits_PB: np.ndarray, relevant_B: np.ndarray, cut: int) -> np.ndarray:
    hits_KB = hits_PB[:cut]
    return np.where(hits_KB.any(axis=0), 1.0 / (1.0 + hits_KB.argmax(axis=0)), 0.0)


def _recall(hits_PB: np.ndarray, relevant_B: np.ndarray, cut: int) -> np.ndarray:
    return hits_PB[:cut].sum(axis=0) / np.maximum(relevant_B, 1)


def _average_precision(hits_PB: np.ndarray, relevant_B: np.ndarray, cut: int) -> np.ndarray:
    hits_KB = hits_PB[:cut]
    ranks_K1 = np.arange(1, len(hits_KB) + 1)[:, None]
    precision_KB = hits_KB.cumsum(axis=0) / ranks_K1
    # Added rank by rank, so that equal rankings give equal bits whatever the batch.
    total_KB = np.where(hits_KB, precision_KB, 0.0).cumsum(axis=0)
    return total_KB[-1] / np.maximum(relevant_B, 1)


_KINDS = {"RR": _reciprocal_rank, "R": _recall, "AP": _average_precision}


def parse_measure(text: str, k: int) -> tuple[int, Measure | None]:
    """``reward.measure`` → (k of nDCG@k, the measure in its place; None: nDCG@k itself).

    ``k``: of nDCG without a cut-off of its own; the others have none then. Raises InputError for a
    function that cannot be imported, is none, or fails on two made-up rankings.
    """
    named = RANKED_MEASURE.fullmatch(text)
    if named is None:
        return k, _own(text)
    kind, cut = named["kind"], named["cut"]
    if kind == "nDCG":
        return int(cut or k), None
    return k, Ranked(text, int(cut) if cut else np.iinfo(np.int64).max, _KINDS[kind])


def _own(text: str) -> Own:
    field = "reward.measure"
    module, _, name = text.partition(":")
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever the user's module raises
        problem = f"{module!r} cannot be imported ({type(error).__name__}: {error})"
        raise InputError("params.yaml", field, problem, _FIX) from error
    try:
        function = pkgutil.resolve_name(text)
    except AttributeError as error:
        problem = f"module {module} has no function {name!r}"
        raise InputError("params.yaml", field, problem, _FIX) from error
    if not callable(function):
        raise InputError("params.yaml", field, f"{name!r} is no function", _FIX)
    own = Own(text, function)
    scores_PB = np.array([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]], dtype=np.float32)
    gains_PB = np.array([[1.0, 0.0], [0.0, 0.0], [0.1, 1.0]])
    try:
        own(scores_PB, gains_PB, ["red dress", "hat"])
    except InputError:
        raise
    except Exception as error:
        problem = f"{text}: fails on two rankings ({type(error).__name__}: {error})"
        fix = "it takes gains (B, P) in ranked order and (B,) search texts"
        raise InputError("params.yaml", field, problem, fix) from error
    return own
