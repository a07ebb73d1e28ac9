"""Seeded hashes of strings and integers, the same on every machine, thread count and library
version.

Polars' own ``hash`` may change between its versions; splits and pools must not.
"""

import numpy as np
import polars as pl

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BASE = 0x100000001B3
_CHUNK = 1 << 17


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer: uint64 → uint64, a bijection whose output bits look independent of
    the input's.

    Source: Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    z = values.astype(np.uint64) + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash_strings(strings: pl.Series, seed: int) -> np.ndarray:
    """(n,) strings → (n,) uint64: polynomial hash of the UTF-8 bytes, then ``mix`` with the seed.
    Null hashes as "".
    """
    strings = strings.cast(pl.String).fill_null("")
    parts = [
        _hash_chunk(strings[begin : begin + _CHUNK], seed)
        for begin in range(0, len(strings), _CHUNK)
    ]
    return np.concatenate([np.zeros(0, dtype=np.uint64), *parts])


def _hash_chunk(strings: pl.Series, seed: int) -> np.ndarray:
    lengths = strings.str.len_bytes().to_numpy().astype(np.int64)
    data = np.frombuffer((strings.str.join("").item() or "").encode(), dtype=np.uint8).astype(
        np.uint64
    )
    ends = np.cumsum(lengths)
    sums = np.zeros(len(strings), dtype=np.uint64)
    filled = lengths > 0
    if filled.any():
        powers = np.empty(int(lengths.max()), dtype=np.uint64)
        powers[0] = 1
        if len(powers) > 1:
            powers[1:] = _BASE
            powers = np.cumprod(powers, dtype=np.uint64)
        local = np.arange(len(data)) - np.repeat(ends - lengths, lengths)
        sums[filled] = np.add.reduceat(
            (data + np.uint64(1)) * powers[local], (ends - lengths)[filled]
        )
    return mix(sums ^ mix(np.array([seed], dtype=np.uint64)) ^ mix(lengths.astype(np.uint64)))


def unit_interval(hashes: np.ndarray) -> np.ndarray:
    """uint64 hashes → float64 in [0, 1)."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
