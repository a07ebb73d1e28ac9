"""Training, validation and test: which side a key falls on, and what the sides must hold."""

from pathlib import Path

import numpy as np
import polars as pl

from ospo.data.hashing import hash_strings, unit_interval
from ospo.data.schemas import SPLITS
from ospo.errors import InputError


def assign_split(keys: pl.Series, validation: float, test: float, seed: int) -> pl.Series:
    """Split of each key (a query's normal form, a customer): a function of the key's text and the
    seed alone, never of row order.
    """
    share = unit_interval(hash_strings(keys, seed))
    names = np.where(
        share < test, "test", np.where(share < test + validation, "validation", "train")
    )
    return pl.Series("split", names, dtype=pl.String)


def require_splits(
    file: Path, field: str, splits: pl.Series, fix: str, evaluation_only: bool = False
) -> None:
    """Raise InputError (with ``file``, ``field`` and ``fix``) where no request is left for
    training, validation or test.

    splits: (R,) the split of each request. evaluation_only: training requests may be missing.
    """
    counts = dict(splits.value_counts().iter_rows())
    wanted = SPLITS[1:] if evaluation_only else SPLITS
    if missing := [name for name in wanted if not counts.get(name)]:
        held = ", ".join(f"{counts[name]:,} {name}" for name in SPLITS if counts.get(name))
        names = {"train": "training", "validation": "validation", "test": "test"}
        lacking = " and no ".join(names[name] for name in missing)
        raise InputError(file, field, f"gives no {lacking} request ({held})", fix)
