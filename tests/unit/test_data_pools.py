"""Candidate pools and the hashes they rest on."""

import math

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from ospo.config import Pool
from ospo.data.hashing import hash_strings, mix, unit_interval
from ospo.data.pools import Judged, build_pools, item_ranges
from ospo.data.split import assign_split


def _inputs(items: int, requests: int, categories: int, seed: int):
    random = np.random.default_rng(seed)
    codes = random.integers(categories, size=items)
    groups = codes // 3
    hashes_I = hash_strings(pl.Series([f"i{n}" for n in range(items)]), 0)
    hashes_R = hash_strings(pl.Series([f"r{n}" for n in range(requests)]), 0)
    relevant, judged = [], []
    for request in range(requests):
        rows = random.permutation(items)[: int(random.integers(1, min(6, items) + 1))]
        cut = int(random.integers(1, len(rows) + 1))
        relevant += [(request, row) for row in rows[:cut]]
        judged += [(request, row) for row in rows[cut:]]
    pairs = [tuple(np.array(p, dtype=np.int64).reshape(-1, 2).T) for p in (relevant, judged)]
    first = np.array(
        [
            rows[0]
            for rows in np.split(pairs[0][1], np.searchsorted(pairs[0][0], np.arange(1, requests)))
        ]
    )
    return codes, groups, hashes_I, hashes_R, pairs, first


def _build(codes, groups, hashes_I, hashes_R, pairs, first, size, quotas=(50, 30, 20)):
    pool = Pool(size=size, hard=quotas[0], related=quotas[1], random=quotas[2])
    return build_pools(
        Judged(*pairs[0]),
        Judged(*pairs[1]),
        first,
        item_ranges(codes, groups, hashes_I),
        hashes_R,
        pool,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(7, 400),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(6, 120),
    st.integers(0, 9),
)
def test_pool_invariants(items, requests, categories, size, seed):
    inputs = _inputs(items, requests, categories, seed)
    pools = _build(*inputs, size)
    _, _, _, _, (relevant, judged), _ = inputs
    for request, pool in enumerate(pools):
        held = pool[pool >= 0]
        assert len(set(held)) == len(held) == min(size, items), (
            "distinct items, as many as there are"
        )
        assert (pool[len(held) :] == -1).all(), "padding stands last"
        assert set(relevant[1][relevant[0] == request]) <= set(held), (
            "every relevant item is in the pool"
        )
        if size >= 62 and items >= 62:  # the hard quota has room for all judged negatives
            assert set(judged[1][judged[0] == request]) <= set(held)


def test_tiers_fill_their_quotas():
    codes, groups, hashes_I, hashes_R, pairs, first = _inputs(3000, 40, 9, 3)
    pools = _build(codes, groups, hashes_I, hashes_R, pairs, first, 100)
    for request, pool in enumerate(pools):
        relevant, judged = (pair[1][pair[0] == request] for pair in pairs)
        drawn = np.setdiff1d(pool, np.concatenate([relevant, judged]))
        hard = codes[drawn] == codes[first[request]]
        related = (groups[drawn] == groups[first[request]]) & ~hard
        room = 100 - len(relevant)
        assert hard.sum() + len(judged) == math.ceil(room * 0.5), (
            "judged negatives use the hard share"
        )
        assert related.sum() == math.ceil(room * 0.3)
        assert len(drawn) == 100 - len(relevant) - len(judged)


def test_each_share_changes_the_pools():
    inputs = _inputs(3000, 40, 9, 3)
    usual = _build(*inputs, 100)
    for quotas in ((40, 30, 20), (50, 20, 20), (50, 30, 10)):
        assert (_build(*inputs, 100, quotas) != usual).any()


def test_short_category_leaves_its_places_to_the_group():
    items = 300
    codes = np.where(np.arange(items) < 5, 0, np.where(np.arange(items) < 200, 1, 2))
    groups = np.where(np.arange(items) < 200, 0, 1)
    hashes_I = hash_strings(pl.Series([f"i{n}" for n in range(items)]), 0)
    none = np.zeros(0, np.int64)
    pairs = (np.zeros(1, np.int64), np.array([2])), (none, none)
    pool = _build(codes, groups, hashes_I, np.array([9], np.uint64), pairs, np.array([2]), 100)[0]
    assert (codes[pool] == 0).sum() == 5
    assert (codes[pool] == 1).sum() == 30 + 46
    assert (codes[pool] == 2).sum() == 19


def test_pool_is_the_same_whatever_the_other_requests():
    codes, groups, hashes_I, hashes_R, pairs, first = _inputs(500, 30, 5, 1)
    together = _build(codes, groups, hashes_I, hashes_R, pairs, first, 60)
    for request in (0, 7, 29):
        alone = [
            (np.zeros((p[0] == request).sum(), np.int64), p[1][p[0] == request]) for p in pairs
        ]
        single = _build(codes, groups, hashes_I, hashes_R[[request]], alone, first[[request]], 60)
        assert (single[0] == together[request]).all()


def test_order_in_a_pool_says_nothing():
    codes, groups, hashes_I, hashes_R, pairs, first = _inputs(2000, 400, 9, 5)
    pools = _build(codes, groups, hashes_I, hashes_R, pairs, first, 100)
    places = [
        float(np.flatnonzero(pool == item)[0]) for pool, item in zip(pools, first, strict=True)
    ]
    assert 44 < np.mean(places) < 55


def test_random_negatives_are_spread_over_the_catalogue():
    items, requests = 1000, 600
    codes, groups, hashes_I, hashes_R, pairs, first = _inputs(items, requests, 1, 2)
    pools = _build(codes, groups, hashes_I, hashes_R, pairs, first, 100)
    counts = np.bincount(pools.ravel(), minlength=items)
    # Uniform: mean 60, standard deviation about 7.3.
    assert counts.min() > 25
    assert counts.max() < 100


def test_hashes():
    strings = pl.Series(["", "a", "b", "ab", "ba", "é", None, "a" * 100])
    hashes = hash_strings(strings, 0)
    assert hashes[0] == hashes[6]
    assert len(set(hashes.tolist())) == 7
    assert (hash_strings(strings, 1) != hashes).all()
    assert (hash_strings(strings.reverse(), 0)[::-1] == hashes).all(), (
        "no string's hash depends on its neighbours"
    )
    # Pinned: splits and pools must be the same on every machine and with every library version.
    assert hash_strings(pl.Series(["linen shirt"]), 7).tolist() == [PINNED_HASH]
    assert len(np.unique(mix(np.arange(10_000, dtype=np.uint64)))) == 10_000
    uniform = unit_interval(hash_strings(pl.Series([f"query {n}" for n in range(20_000)]), 0))
    assert abs(uniform.mean() - 0.5) < 0.01
    assert abs((uniform < 0.1).mean() - 0.1) < 0.01


def test_split_shares_and_independence_of_order():
    keys = pl.Series([f"query {n}" for n in range(20_000)])
    split = assign_split(keys, 0.15, 0.25, 0)
    assert abs((split == "test").mean() - 0.25) < 0.015
    assert abs((split == "validation").mean() - 0.15) < 0.015
    assert (assign_split(keys.reverse(), 0.15, 0.25, 0).reverse() == split).all()
    assert (assign_split(keys, 0.15, 0.25, 1) != split).any()


PINNED_HASH = 761446568991719523
