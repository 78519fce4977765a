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

from vit_jax.kernels.attention.rotation import Rotation
from vit_jax.kernels.windows import LANES


@dataclasses.dataclass(frozen=True)
class Piece:
    """The columns of a head: runs of equal length.

    Attributes:
      starts: the first column of each run.
      size: columns of a run.
    """

    starts: tuple[int, ...]
    size: int

    @property
    def channels(self) -> int:
        """All columns, at most 128."""
        return len(self.starts) * self.size

    @property
    def lane(self) -> int:
        """Of the first column of the first run; the other runs come behind it, wherever they are in the row."""
        return self.starts[0] % LANES

    def tiles(self, run: int) -> range:
        """The registers that a run lies in, one or two."""
        return range(self.starts[run] // LANES, (self.starts[run] + self.size - 1) // LANES + 1)


def pieces(heads: int, size: int, blocks: int = 1) -> list[tuple[Piece, Piece, Piece, Piece]]:
    """Query, key and value of each head in a row of ``qkv``, and the head in a row of the output.

    Args:
      heads: of the row.
      size: channels of a head.
      blocks: rows of ``qkv`` are ordered (blocks, heads, 3, size / blocks), those of the output likewise.
    """

    def at(i: int, parts: int) -> Piece:
        return Piece(tuple((b * heads * parts + i) * size // blocks for b in range(blocks)), size // blocks)

    return [(at(3 * h, 3), at(3 * h + 1, 3), at(3 * h + 2, 3), at(h, 1)) for h in range(heads)]


def group(size: int) -> int:
    """The fewest heads of this size that fill whole registers in ``qkv`` and in the output."""
    return LANES // math.gcd(LANES, size)


def read(ref: Any, piece: Piece, width: int, lane: int) -> jax.Array:
    """``[N, 128]`` of a block ``[1, N, ...]``: the piece from ``lane`` on, and others' columns beside it.

    Args:
      ref: the block.
      piece: what of it.
      width: columns of the array; what a block has behind them is unknown and becomes 0.
      lane: where the first of its columns is to be.
    """
    found = None
    for run in range(len(piece.starts)):
        parts = [_tile(ref, tile, width) for tile in piece.tiles(run)]
        first = piece.starts[run] % LANES
        x: jax.Array = parts[0] if len(parts) == 1 else jnp.where(_lanes() >= first, parts[0], parts[1])
        x = rolled(x, lane + run * piece.size - first)
        found = x if found is None else jnp.where(_inside(lane + run * piece.size, piece.size), x, found)
    assert found is not None
    return found


def _tile(ref: Any, tile: int, width: int) -> jax.Array:
    x: jax.Array = ref[0, :, tile * LANES : (tile + 1) * LANES]
    rest = width - tile * LANES
    return jnp.where(_lanes() < rest, x, jnp.zeros_like(x)) if rest < LANES else x


def _lanes() -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)


def _inside(lane: int, size: int) -> jax.Array:
    """bool ``[1, 128]``: the lanes from ``lane`` on, modulo 128."""
    lanes, first, end = _lanes(), lane % LANES, lane % LANES + size
    return (lanes >= first) & (lanes < end) if end <= LANES else (lanes >= first) | (lanes < end - LANES)


def only(x: jax.Array, piece: Piece) -> jax.Array:
    """``x [N, 128]``, which has the piece at its own lane, with zeros beside it."""
    if piece.channels == LANES:
        return x
    return jnp.where(_inside(piece.lane, piece.channels), x, jnp.zeros_like(x))


def rolled(x: jax.Array, by: int) -> jax.Array:
    """``x [N, 128]`` with its columns moved up by so many lanes, those at the end to the beginning."""
    return pltpu.roll(x, by % LANES, 1) if by % LANES else x


def spread(x: jax.Array) -> jax.Array:
    """``x [N, E]`` of a rotation over a register, ``[N, 128]``: again and again where E divides its lanes."""
    times = LANES // x.shape[1] if LANES % x.shape[1] == 0 else 1
    return jnp.pad(jnp.tile(x, (1, times)), ((0, 0), (0, LANES - times * x.shape[1])))


def turned(x: jax.Array, rotation: Rotation, piece: Piece, *, back: bool = False) -> jax.Array:
    """``x [N, 128]``, which has the piece at its own lane, turned, or turned back; in its type.

    The rotation is as :func:`spread` leaves it.
    """
    cos, sin, pair = rotation.cos, rotation.sin, rotation.pair
    if LANES % piece.channels or piece.lane % piece.channels:
        cos, sin = rolled(cos, piece.lane), rolled(sin, piece.lane)
    wide = x.astype(jnp.float32)
    first = (_lanes() - piece.lane) % LANES % (2 * pair) < pair
    other = jnp.where(first, rolled(wide, -pair), rolled(wide, pair)) * sin
    return (wide * cos - other if back else wide * cos + other).astype(x.dtype)


def write(ref: Any, values: Iterable[tuple[Piece, jax.Array]]) -> None:
    """Writes pieces ``[N, 128]``, each at its own lane, which together are the block ``[1, N, ...]``."""
    tiles: dict[int, jax.Array] = {}
    for piece, value in values:
        for run, start in enumerate(piece.starts):
            moved = rolled(value, start - piece.lane - run * piece.size)
            for tile in piece.tiles(run):
                first = start - tile * LANES
                here = (_lanes() >= first) & (_lanes() < first + piece.size)
                tiles[tile] = jnp.where(here, moved, tiles[tile]) if tile in tiles else moved
    for tile, value in tiles.items():
        ref[0, :, tile * LANES : (tile + 1) * LANES] = value.astype(ref.dtype)
