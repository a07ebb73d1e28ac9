"""Are the categories any good? Pools take their hard negatives from the target's category: where
one category holds the shop, or every product is one of its own, negatives say nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from ospo.data.item_places import relevant_pairs
from ospo.data.text import text_codes
from ospo.data.writer import Prepared
from ospo.errors import printable

SHOWN = 10
LARGEST, WITHOUT = 1 / 3, 0.1
"""Share of the catalogue in one category, and of pools without a hard negative, from which on a
warning is due.
"""


@dataclass(frozen=True)
class Categories:
    """lines: the most frequent categories. warnings: what is wrong with them, with what to do."""

    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def categories_of(catalogue: pl.DataFrame, bare: int, pools: int) -> Categories:
    """What to say about a catalogue's categories; ``bare`` of ``pools`` candidate pools hold no
    hard negative.
    """
    counts = catalogue["category"].value_counts(sort=True)
    counts = counts.sort(["count", "category"], descending=[True, False])
    shown = ", ".join(
        f"{_short(name) or '(none)'} {count:,}" for name, count in counts.head(SHOWN).rows()
    )
    found = Categories([f"{len(counts):,} categories, the most frequent: {shown}"])
    fix = "give products a `category` of your own, or titles that end in what the product is"
    name, largest = counts.row(0)
    if largest > LARGEST * len(catalogue):
        found.warnings.append(
            f"category {_short(name) or '(none)'!r} holds {largest:,} of {len(catalogue):,} "
            f"products: hard negatives are hardly harder than others. Fix: {fix}"
        )
    if bare > WITHOUT * pools:
        found.warnings.append(
            f"{bare:,} of {pools:,} pools hold no hard negative: no other product of the target's "
            f"category. Fix: {fix}"
        )
    return found


def bare_pools(category_I: np.ndarray, pools_CP: np.ndarray, relevant_CP: np.ndarray) -> int:
    """How many pools hold no product of a relevant one's category but relevant ones.

    category_I: (I,) codes; pools_CP: (C, P) catalogue rows, -1 padding; relevant_CP: (C, P) bool.
    """
    held = pools_CP >= 0
    row = np.broadcast_to(np.arange(len(pools_CP))[:, None], pools_CP.shape)
    key = row.astype(np.int64) * (int(category_I.max(initial=0)) + 1) + category_I[pools_CP]
    hard = held & ~relevant_CP & np.isin(key, key[held & relevant_CP])
    return int((~hard.any(axis=1)).sum())


class PassingPools(Iterator[np.ndarray]):
    """The pools of a preparation on their way to another reader, counted as they pass.

    bare: how many hold no hard negative. count: how many there were.
    """

    def __init__(self, prepared: Prepared):
        self._pairs, self._items = relevant_pairs(prepared), len(prepared.catalogue)
        self._codes = text_codes(prepared.catalogue["category"])[0]
        self._chunks = iter(prepared.pool_chunks)
        self.catalogue, self.bare, self.count = prepared.catalogue, 0, 0

    def __next__(self) -> np.ndarray:
        """The next (C, P) pools."""
        pools_CP = next(self._chunks)
        row = np.arange(self.count, self.count + len(pools_CP), dtype=np.int64)[:, None]
        relevant_CP = np.isin(row * self._items + pools_CP, self._pairs)
        self.bare += bare_pools(self._codes, pools_CP, relevant_CP)
        self.count += len(pools_CP)
        return pools_CP

    def categories(self) -> Categories:
        """What to say about the categories, once all pools have passed; those that the reader left
        pass now.
        """
        for _ in self:
            pass
        return categories_of(self.catalogue, self.bare, self.count)


def _short(name: str) -> str:
    """A name from data, fit for a terminal."""
    return printable(name)[:40]
