"""Pseudo-random order without memory: a keyed permutation of ``range(n)`` evaluated only where it is asked.

A shuffled array of a billion indices would cost gigabytes and a rebuild at every resume. A Feistel network over the
next even power of two, walked until it lands below ``n`` (Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
2002), is a bijection too and needs only its key. Plain 64-bit integer arithmetic: no library version changes the order.
"""

from __future__ import annotations

import numpy as np

_MASK = 2**64 - 1
_ROUNDS = 6


def hash64(x: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al., 2014): uint64[...] -> uint64[...], a bijection whose output bits look independent."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def make_key(*words: int) -> int:
    """One 64-bit key from any integers, order included, such as (seed, epoch)."""
    key = np.zeros(1, np.uint64)
    for word in words:
        key = hash64(key ^ np.uint64(word & _MASK))
    return int(key[0])


def permute(position: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where the permutation of ``range(n)`` named by ``key`` sends each position.

    Args:
      position: int64[...] in ``[0, n)``.
      n: size of the domain, at least 1.
      key: any 64-bit integer.

    Returns:
      int64[...], distinct for distinct positions.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = [np.uint64(make_key(key, r)) for r in range(_ROUNDS)]
    out = np.array(position, np.uint64).reshape(-1)
    todo = np.arange(out.size)
    while todo.size:
        out[todo] = _feistel(out[todo], half, keys)
        todo = todo[out[todo] >= n]
    return out.astype(np.int64).reshape(np.shape(position))


def _feistel(x: np.ndarray, half: int, keys: list[np.uint64]) -> np.ndarray:
    low = np.uint64(2**half - 1)
    left, right = x >> np.uint64(half), x & low
    for key in keys:
        left, right = right, left ^ (hash64(right ^ key) & low)
    return (left << np.uint64(half)) | right
