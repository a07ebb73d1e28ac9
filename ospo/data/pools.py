"""Candidate pools: every relevant item, then hard, related and random negatives, sampled without a loop over rows.

Each tier of negatives is the catalogue sorted by a key (category, group, nothing), in seeded-hash order inside a key.
A request walks its key's range by an affine map j → (a·j + b) mod m with gcd(a, m) = 1, a and b from the request's
hash: a sample without replacement that depends on the request and the seed alone, not on row order or threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ospo.data.hashing import mix

_CHUNK = 16_384


@dataclass(frozen=True)
class Tier:
    """Where a request draws negatives: ``order_I[start_R : start_R + length_R]``, up to ``quota`` of them."""

    order_I: np.ndarray
    start_R: np.ndarray
    length_R: np.ndarray
    quota: int


def tier_by_key(codes_I: np.ndarray, hashes_I: np.ndarray, codes_R: np.ndarray, quota: int) -> Tier:
    """Tier of the items that share the request's key.

    codes_I: (I,) key of each catalogue row; hashes_I: (I,) uint64; codes_R: (R,) key of each request (-1: no items).
    """
    order = np.lexsort((hashes_I, codes_I)).astype(np.int32)
    ordered = codes_I[order]
    start = np.searchsorted(ordered, codes_R, side="left")
    end = np.searchsorted(ordered, codes_R, side="right")
    return Tier(order, start, np.where(codes_R < 0, 0, end - start), quota)


def _draw(tier: Tier, rows: slice, hashes_C: np.ndarray, width: int) -> np.ndarray:
    """(C, width) catalogue rows drawn without replacement from each request's range; -1 where the range is used up."""
    length = tier.length_R[rows].astype(np.int64)
    size = np.maximum(length, 1)
    step = (hashes_C % size.astype(np.uint64)).astype(np.int64) + 1
    while (shared := np.gcd(step, size) > 1).any():
        step[shared] = step[shared] % size[shared] + 1
    offset = (mix(hashes_C) % size.astype(np.uint64)).astype(np.int64)
    j = np.arange(width, dtype=np.int64)
    positions = (step[:, None] * j + offset[:, None]) % size[:, None] + tier.start_R[rows].astype(np.int64)[:, None]
    return np.where(j < length[:, None], tier.order_I[np.minimum(positions, len(tier.order_I) - 1)], -1)


def _place_fixed(pool: np.ndarray, count: np.ndarray, requests: np.ndarray, items: np.ndarray, cap: np.ndarray) -> None:
    """Append (request, item) pairs, sorted by request, to the pools, in order, up to ``cap`` items a request."""
    if not len(requests):
        return
    first = np.searchsorted(requests, requests, side="left")
    position = count[requests] + np.arange(len(requests)) - first
    keep = position < cap[requests]
    pool[requests[keep], position[keep]] = items[keep]
    np.add.at(count, requests[keep], 1)


def _fill(pool: np.ndarray, count: np.ndarray, candidates: np.ndarray, cap: np.ndarray, items: int) -> None:
    """Append candidates that a pool does not hold yet, in order, until it holds ``cap`` items."""
    base = np.arange(len(pool), dtype=np.int64)[:, None] * (items + 1)
    held = (np.sort(np.where(pool < 0, items, pool), axis=1) + base).ravel()
    keys = (np.where(candidates < 0, items, candidates) + base).ravel()
    found = np.minimum(np.searchsorted(held, keys), len(held) - 1)
    fresh = (held[found] != keys).reshape(candidates.shape) & (candidates >= 0)
    rank = np.cumsum(fresh, axis=1)
    take = fresh & (rank <= (cap - count)[:, None])
    row, column = np.nonzero(take)
    pool[row, count[row] + rank[row, column] - 1] = candidates[row, column]
    count += take.sum(axis=1)


def build_pools(
    relevant: tuple[np.ndarray, np.ndarray],
    judged: tuple[np.ndarray, np.ndarray],
    tiers: Sequence[Tier],
    hashes_R: np.ndarray,
    items: int,
    size: int,
) -> np.ndarray:
    """Candidate pools, (R, size) int32 catalogue rows, padded at the end with -1 where the catalogue is too small.

    relevant, judged: (request rows, catalogue rows), sorted by request; a request's relevant items (at most ``size``)
    all enter its pool, its judged irrelevant ones fill the first tier's quota first. A tier that runs short leaves
    its places to the next; the last tier fills the pool. The order inside a pool is a seeded shuffle.
    """
    requests = len(hashes_R)
    pools = np.full((requests, size), -1, dtype=np.int32)
    for begin in range(0, requests, _CHUNK):
        rows = slice(begin, min(begin + _CHUNK, requests))
        pool = pools[rows]
        hashes_C = hashes_R[rows]
        count = np.zeros(len(pool), dtype=np.int64)
        full = np.full(len(pool), size)
        spans = [slice(*np.searchsorted(pair[0], [rows.start, rows.stop])) for pair in (relevant, judged)]
        _place_fixed(pool, count, relevant[0][spans[0]] - begin, relevant[1][spans[0]], full)
        cap = count.copy()
        for number, tier in enumerate(tiers):
            cap = np.minimum(cap + tier.quota, size) if number + 1 < len(tiers) else full
            if number == 0:
                _place_fixed(pool, count, judged[0][spans[1]] - begin, judged[1][spans[1]], cap)
            # Wide enough that what the pool already holds cannot leave it short.
            width = int((cap - count).max(initial=0) + count.max(initial=0))
            drawn = _draw(tier, rows, mix(hashes_C + np.uint64(number + 1)), width)
            _fill(pool, count, drawn, cap, items)
        _shuffle(pool, hashes_C)
    return pools


def _shuffle(pool: np.ndarray, hashes_C: np.ndarray) -> None:
    """Order each pool by a hash of (request, item), padding last, in place."""
    keys = mix(pool.astype(np.int64).astype(np.uint64) ^ hashes_C[:, None]) >> np.uint64(1)
    keys[pool < 0] = np.uint64(2**64 - 1)
    pool[:] = np.take_along_axis(pool, np.argsort(keys, axis=1, kind="stable"), axis=1)
