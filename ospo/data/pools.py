"""Candidate pools: every relevant item, then hard, related and random negatives, sampled without a
loop over rows.

The catalogue is ordered by (group, category, seeded hash). A request's target then names three
nested ranges: hard negatives come from its category, related ones from the rest of its group,
random ones from outside the group. A request walks a range by an affine map j → (a·j + b) mod m
with gcd(a, m) = 1, a and b from the request's hash: a sample without replacement that depends on
the request and the seed alone, not on row order, threads or other requests.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ospo.config import Pool
from ospo.data.hashing import mix

_CHUNK = 4096
_PADDING = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Ranges:
    """The catalogue in sampling order, and where the category and the group of each item lie in it.

    order_I: catalogue rows by (group, category, hash); place_I: its inverse. category_I2, group_I2:
    (I, 2) begin and end, in that order, of the category and the group of each catalogue row.
    """

    order_I: np.ndarray
    place_I: np.ndarray
    category_I2: np.ndarray
    group_I2: np.ndarray


def item_ranges(category_I: np.ndarray, group_I: np.ndarray, hashes_I: np.ndarray) -> Ranges:
    """Ranges of a catalogue. category_I, group_I: (I,) codes; hashes_I: (I,) uint64.

    A category that occurs in two groups counts as two.
    """
    order = np.lexsort((hashes_I, category_I, group_I)).astype(np.int32)
    place = np.empty_like(order)
    place[order] = np.arange(len(order), dtype=np.int32)
    new_group = np.concatenate(([True], np.diff(group_I[order]) != 0))
    new_category = new_group | np.concatenate(([True], np.diff(category_I[order]) != 0))

    def bounds(new: np.ndarray) -> np.ndarray:
        begins = np.flatnonzero(new)
        run = (np.cumsum(new) - 1)[place]
        return np.stack([begins[run], np.append(begins[1:], len(order))[run]], axis=1).astype(
            np.int32
        )

    return Ranges(order, place, bounds(new_category), bounds(new_group))


@dataclass(frozen=True)
class Judged:
    """(request row, catalogue row) pairs, sorted by request."""

    request: np.ndarray
    item: np.ndarray

    def of(self, begin: int, end: int) -> "Judged":
        """The pairs of requests ``begin`` … ``end − 1``, renumbered from 0."""
        low, high = np.searchsorted(self.request, [begin, end])
        return Judged(self.request[low:high] - begin, self.item[low:high])

    def first(self, most_C: np.ndarray) -> "Judged":
        """The first ``most_C[request]`` pairs of each request."""
        rank = np.arange(len(self.request)) - np.searchsorted(
            self.request, self.request, side="left"
        )
        keep = rank < most_C[self.request]
        return Judged(self.request[keep], self.item[keep])


def pool_chunks(
    relevant: Judged,
    irrelevant: Judged,
    target_R: np.ndarray,
    ranges: Ranges,
    hashes_R: np.ndarray,
    pool: Pool,
) -> Iterator[np.ndarray]:
    """Candidate pools in chunks of requests: (C, pool.size) int32 catalogue rows, -1 padding at the
    end.

    A request's relevant items (at most ``pool.size``) all enter its pool. The places left are
    shared out as ``pool.hard : pool.related : pool.random``; items judged irrelevant for the
    request come first among the hard ones. A range that runs short leaves its places to the next.
    The order inside a pool is a seeded shuffle. target_R: (R,) the catalogue row that names the
    ranges; hashes_R: (R,) uint64.
    """
    for begin in range(0, len(hashes_R), _CHUNK):
        rows = slice(begin, begin + _CHUNK)
        end = begin + _CHUNK
        yield _chunk(
            relevant.of(begin, end),
            irrelevant.of(begin, end),
            target_R[rows],
            ranges,
            hashes_R[rows],
            pool,
        )


def build_pools(
    relevant: Judged,
    irrelevant: Judged,
    target_R: np.ndarray,
    ranges: Ranges,
    hashes_R: np.ndarray,
    pool: Pool,
) -> np.ndarray:
    """All of ``pool_chunks`` as one (R, pool.size) array."""
    chunks = list(pool_chunks(relevant, irrelevant, target_R, ranges, hashes_R, pool))
    return np.concatenate([np.empty((0, pool.size), dtype=np.int32), *chunks])


def _chunk(
    relevant: Judged,
    irrelevant: Judged,
    target: np.ndarray,
    ranges: Ranges,
    hashes: np.ndarray,
    pool: Pool,
) -> np.ndarray:
    requests, items = len(hashes), len(ranges.order_I)
    relevant_count = np.bincount(relevant.request, minlength=requests)
    places = np.maximum(pool.size - relevant_count, 0)
    shares = max(pool.hard + pool.related + pool.random, 1)
    hard, related = -(-places * pool.hard // shares), -(-places * pool.related // shares)
    irrelevant = irrelevant.first(hard)
    irrelevant_count = np.bincount(irrelevant.request, minlength=requests)
    fixed_request = np.concatenate([relevant.request, irrelevant.request])
    fixed_item = np.concatenate([relevant.item, irrelevant.item])

    (c0, c1), (g0, g1) = (
        ranges.category_I2[target].T.astype(np.int64),
        ranges.group_I2[target].T.astype(np.int64),
    )
    place = ranges.place_I[fixed_item]
    in_category = (place >= c0[fixed_request]) & (place < c1[fixed_request])
    in_group = (place >= g0[fixed_request]) & (place < g1[fixed_request]) & ~in_category
    lengths = [c1 - c0, (g1 - g0) - (c1 - c0), items - (g1 - g0)]
    held = [in_category, in_group, ~in_category & ~in_group]
    free = [
        length - np.bincount(fixed_request[mask], minlength=requests)
        for length, mask in zip(lengths, held, strict=True)
    ]
    takes = _share_out(places - irrelevant_count, hard - irrelevant_count, related, free)

    most_fixed = int(np.bincount(fixed_request, minlength=requests).max(initial=0))
    fixed = np.full((requests, most_fixed), -1, dtype=np.int64)
    order = np.argsort(fixed_request, kind="stable")
    row = fixed_request[order]
    fixed[row, np.arange(len(row)) - np.searchsorted(row, row, side="left")] = fixed_item[order]
    columns = [fixed]
    for tier, (length, take) in enumerate(zip(lengths, takes, strict=True)):
        walk = _walk(
            length, mix(hashes + np.uint64(tier + 1)), int(take.max(initial=0)) + most_fixed
        )
        if tier == 0:
            walk += c0[:, None]
        elif tier == 1:  # positions in the group with the category cut out
            walk += np.where(
                walk + g0[:, None] >= c0[:, None], (g0 + c1 - c0)[:, None], g0[:, None]
            )
        else:  # positions in the catalogue with the group cut out
            walk += np.where(walk >= g0[:, None], (g1 - g0)[:, None], 0)
        drawn = ranges.order_I[np.minimum(walk, items - 1)].astype(np.int64)
        fresh = (np.arange(walk.shape[1]) < length[:, None]) & _not_among(drawn, fixed)
        fresh &= np.cumsum(fresh, axis=1, dtype=np.int32) <= take[:, None]
        columns.append(np.where(fresh, drawn, -1))
    return _shuffled(np.concatenate(columns, axis=1), hashes, pool.size)


def _share_out(
    places: np.ndarray, hard: np.ndarray, related: np.ndarray, free: list[np.ndarray]
) -> list[np.ndarray]:
    """How many negatives to draw from category, group and the rest: (C,) each. places: (C,) places
    that are left.
    """
    wanted = hard + related
    hard = np.minimum(np.minimum(hard, places), free[0])
    related = np.minimum(np.minimum(wanted - hard, places - hard), free[1])
    rest = np.minimum(places - hard - related, free[2])
    # A small catalogue: what is still missing comes from wherever items are left.
    more_related = np.minimum(places - hard - related - rest, free[1] - related)
    more_hard = np.minimum(places - hard - related - rest - more_related, free[0] - hard)
    return [hard + more_hard, related + more_related, rest]


def _walk(length: np.ndarray, hashes: np.ndarray, width: int) -> np.ndarray:
    """(C, width) distinct positions in [0, length); columns from ``length`` on repeat and are to be
    ignored.
    """
    size = np.maximum(length, 1)
    step = (hashes % size.astype(np.uint64)).astype(np.int64) + 1
    while (shared := np.gcd(step, size) > 1).any():
        step[shared] = step[shared] % size[shared] + 1
    offset = (mix(hashes) % size.astype(np.uint64)).astype(np.int64)
    return (step[:, None] * np.arange(width, dtype=np.int64) + offset[:, None]) % size[:, None]


def _not_among(drawn: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Whether each drawn item is none of the fixed items of its row (-1: padding, last)."""
    count = (fixed >= 0).sum(axis=1)
    order = np.argsort(
        -count, kind="stable"
    )  # so that each step compares only the rows that have so many
    drawn, fixed, count = drawn[order], fixed[order], count[order]
    fresh = np.ones(drawn.shape, dtype=bool)
    for column in range(fixed.shape[1]):
        rows = int(np.searchsorted(-count, -column, side="left"))
        fresh[:rows] &= drawn[:rows] != fixed[:rows, column, None]
    out = np.empty_like(fresh)
    out[order] = fresh
    return out


def _shuffled(items: np.ndarray, hashes: np.ndarray, size: int) -> np.ndarray:
    """The items of each row (-1: none) in the order of a hash of (request, item), as (C, size)
    int32.
    """
    keys = mix(items.astype(np.uint64) ^ hashes[:, None]) >> np.uint64(32) << np.uint64(
        32
    ) | items.astype(np.uint64)
    keys[items < 0] = _PADDING
    keys.sort(axis=1)
    if keys.shape[1] < size:
        keys = np.pad(keys, ((0, 0), (0, size - keys.shape[1])), constant_values=_PADDING)
    return (keys[:, :size] & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32)
