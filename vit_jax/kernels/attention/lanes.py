"""Where queries, keys and values of the heads lie among the 128 lanes of a TPU's registers.

A head of E <= 128 channels that begins at column c of a row has lanes c, c + 1, ... modulo 128, in one register or,
around its end, in two. Kept at these lanes it needs no place of its own: a product over all 128 lanes sees this head
alone where the others are 0 in one of its operands, and costs what one over E lanes costs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from vit_jax.kernels.windows import LANES


@dataclasses.dataclass(frozen=True)
class Piece:
    """Columns of a row.

    Attributes:
      start: the first of them.
      size: how many, at most 128.
    """

    start: int
    size: int

    @property
    def lane(self) -> int:
        """Of the first column."""
        return self.start % LANES

    @property
    def tiles(self) -> range:
        """The registers that it lies in, one or two."""
        return range(self.start // LANES, (self.start + self.size - 1) // LANES + 1)


def pieces(heads: int, size: int) -> list[tuple[Piece, Piece, Piece, Piece]]:
    """Query, key and value of each head in a row of ``qkv``, and the head in a row of the output."""
    at = lambda i: Piece(i * size, size)  # noqa: E731
    return [(at(3 * h), at(3 * h + 1), at(3 * h + 2), at(h)) for h in range(heads)]


def group(size: int) -> int:
    """The fewest heads of this size that fill whole registers in ``qkv`` and in the output."""
    return LANES // math.gcd(LANES, size)


def read(ref: Any, piece: Piece, width: int, lane: int) -> jax.Array:
    """``[N, 128]`` of a block ``[1, N, ...]``: the piece moved to ``lane``, and others' columns beside it.

    Args:
      ref: the block.
      piece: what of it.
      width: columns of the array; what a block has behind them is unknown and becomes 0.
      lane: where the first of its columns is to be.
    """
    lanes = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    parts: list[jax.Array] = []
    for tile in piece.tiles:
        part, rest = ref[0, :, tile * LANES : (tile + 1) * LANES], width - tile * LANES
        parts.append(jnp.where(lanes < rest, part, jnp.zeros_like(part)) if rest < LANES else part)
    x: jax.Array = parts[0] if len(parts) == 1 else jnp.where(lanes >= piece.lane, parts[0], parts[1])
    return rolled(x, lane - piece.lane)


def only(x: jax.Array, piece: Piece) -> jax.Array:
    """``x [N, 128]``, which has the piece at its own lane, with zeros beside it."""
    if piece.size == LANES:
        return x
    lanes, end = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1), piece.lane + piece.size
    inside = (lanes >= piece.lane) & (lanes < end) if end <= LANES else (lanes >= piece.lane) | (lanes < end - LANES)
    return jnp.where(inside, x, jnp.zeros_like(x))


def rolled(x: jax.Array, by: int) -> jax.Array:
    """``x [N, 128]`` with its columns moved up by so many lanes, those at the end to the beginning."""
    return pltpu.roll(x, by % LANES, 1) if by % LANES else x


def write(ref: Any, values: Iterable[tuple[Piece, jax.Array]]) -> None:
    """Writes pieces ``[N, 128]``, each at its own lanes, which together are the block ``[1, N, ...]``."""
    lanes = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    tiles: dict[int, jax.Array] = {}
    for piece, value in values:
        for tile in piece.tiles:
            first = piece.start - tile * LANES
            here = (lanes >= first) & (lanes < first + piece.size)
            tiles[tile] = jnp.where(here, value, tiles[tile]) if tile in tiles else value
    for tile, value in tiles.items():
        ref[0, :, tile * LANES : (tile + 1) * LANES] = value.astype(ref.dtype)
