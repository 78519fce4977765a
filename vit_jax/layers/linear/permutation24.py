"""Which inputs share a group of four: a permutation that lets 2:4 pruning keep more (Pool and Yu 2021, NeurIPS).

The order of a map's inputs is free where whatever makes them can be reordered alike: the hidden units of an MLP, for
instance. A group of inputs is here a stripe of four rows of the kernel ``[in, out]``. Two stripes can share their eight
inputs out in 35 ways; the search takes the best one for many disjoint pairs of stripes at once, round after round in
the order of a tournament, so that every pair meets. When a whole tournament has brought nothing it keeps the result if
that is the best so far, goes back to the best, swaps a few inputs at random and continues.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.types import Array, UserError

PAIRS = list(itertools.combinations(range(8), 2))
HALVES = [h for h in itertools.combinations(range(8), 4) if 0 in h]
WAYS = np.array([[*h, *(i for i in range(8) if i not in h)] for h in HALVES])
"""The 35 ways to share eight inputs out to two stripes, ``[35, 8]``; the first changes nothing."""
SWAPS = 2
"""Random exchanges of two inputs with which the search leaves a place where no pair gains."""


def kept(kernel: Array) -> float:
    """Sum of the magnitudes that 2:4 pruning leaves of ``[in, out]``."""
    size = _sizes(kernel)
    return float(np.sort(size.reshape(-1, 4, size.shape[1]), 1)[:, 2:].sum(dtype=np.float64))


def efficacy(kernel: Array, permutation: Array) -> float:
    """How much of the avoidable loss a permutation avoids, in percent.

    0: no better than the order as it is; 100: as little lost as by keeping the larger half of each output's weights,
    wherever they are, which no group can beat.
    """
    size = _sizes(kernel)
    base = kept(size)
    best = float(np.sort(size, 0)[size.shape[0] // 2 :].sum(dtype=np.float64))
    return 100.0 if best <= base else 100 * (kept(size[np.asarray(permutation)]) - base) / (best - base)


def search(kernel: Array, *, rounds: int = 1000, seed: int = 0) -> np.ndarray:
    """A permutation of the inputs with which 2:4 pruning keeps more of a kernel, never less.

    Maps with the same input are searched together, side by side along ``out``. Equal arguments give equal
    permutations, so every host finds the same. A round takes about ``12 ns * in * out``: 1000 rounds 30 s for an MLP's
    ``[3072, 768]``, in which every pair of stripes meets once, half a second for ``[64, 128]``.

    Args:
      kernel: ``[in, out]``.
      rounds: matchings of stripes to try; the bound on time.
      seed: of the order of meetings and of the random exchanges.

    Returns:
      int ``[in]``: ``kernel[permutation]`` is the better kernel.

    Raises:
      UserError: ``in`` is not a multiple of 4.
    """
    size = _sizes(kernel).astype(np.float32)
    stripes = size.shape[0] // 4
    rng = np.random.default_rng(seed)
    order = np.arange(size.shape[0])
    best, most = order.copy(), kept(size)
    matchings = _tournament(stripes)
    seats = rng.permutation(stripes)
    idle = 0
    for turn in range(rounds if stripes > 1 else 0):
        pairs = seats[matchings[turn % len(matchings)]]
        inputs = order.reshape(stripes, 4)[pairs].reshape(-1, 8)
        value = _shares(size[inputs])
        gains = value.max(1) > value[:, 0] * (1 + 1e-6)
        idle = 0 if gains.any() else idle + 1
        chosen = np.take_along_axis(inputs, WAYS[value.argmax(1)], 1)
        order.reshape(stripes, 4)[pairs[gains]] = chosen[gains].reshape(-1, 2, 4)
        if idle < len(matchings) and turn + 1 < rounds:
            continue
        if (now := kept(size[order])) > most:
            best, most = order.copy(), now
        order, idle, seats = best.copy(), 0, rng.permutation(stripes)
        for a, b in rng.integers(len(order), size=(SWAPS, 2)):
            order[[a, b]] = order[[b, a]]
    return best


def permute_hidden(
    kernel_in: Array, bias_in: Array | None, kernel_out: Array, permutation: Array
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Reorders the hidden units of ``act(x @ kernel_in + bias_in) @ kernel_out``; the map stays what it is.

    The groups of ``kernel_in`` run along its own input, which this leaves alone. To be done before pruning, with
    ``permutation = search(kernel_out)``; sums change their order, so results change by rounding.

    Args:
      kernel_in: ``[D, F]``.
      bias_in: ``[F]``, or None.
      kernel_out: ``[F, D]``.
      permutation: int ``[F]``.

    Returns:
      The three, reordered.

    Raises:
      UserError: ``permutation`` is none of the F hidden units.
    """
    order = np.asarray(permutation)
    if not np.array_equal(np.sort(order), np.arange(kernel_out.shape[0])):
        raise UserError(
            f"permutation of shape {order.shape} does not name each of the {kernel_out.shape[0]} hidden units once; "
            "give what search(kernel_out) returns."
        )
    bias = None if bias_in is None else jnp.asarray(bias_in)[order]
    return jnp.asarray(kernel_in)[:, order], bias, jnp.asarray(kernel_out)[order]


def _sizes(kernel: Array) -> np.ndarray:
    size = np.abs(np.asarray(kernel, np.float64))
    if size.ndim != 2 or size.shape[0] % 4:
        raise UserError(
            f"a kernel of shape {size.shape} has no groups of 4 along its input; give [in, out] with `in` a multiple "
            "of 4."
        )
    return size


def _tournament(players: int) -> list[np.ndarray]:
    """Matchings ``[n, 2]`` in which every two players meet exactly once: one sits still, the others walk around."""
    seats = list(range(players + players % 2))
    matchings = []
    for _ in seats[1:]:
        meet = zip(seats[: len(seats) // 2], reversed(seats), strict=False)
        matchings.append(np.array([pair for pair in meet if max(pair) < players]))
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return matchings


def _shares(rows: np.ndarray) -> np.ndarray:
    """What 2:4 keeps of eight inputs in each of :data:`WAYS`: ``[n, 8, out] -> [n, 35]``.

    The two largest of a, b, c, d are the larger of each pair or one of the pairs, whichever sum is largest. In chunks
    that stay in the cache.
    """
    chunk = max(1, 2**14 // rows.shape[2])
    if len(rows) > chunk:
        return np.concatenate([_shares(rows[i : i + chunk]) for i in range(0, len(rows), chunk)])
    rows = np.ascontiguousarray(rows.transpose(1, 0, 2))
    larger = {(a, b): np.maximum(rows[a], rows[b]) for a, b in PAIRS}
    both = {(a, b): rows[a] + rows[b] for a, b in PAIRS}

    def stripe(a: int, b: int, c: int, d: int) -> np.ndarray:
        top = larger[a, b] + larger[c, d]
        np.maximum(top, both[a, b], out=top)
        return np.maximum(top, both[c, d], out=top).sum(-1)

    return np.stack([stripe(*way[:4]) + stripe(*way[4:]) for way in WAYS.tolist()], 1)
