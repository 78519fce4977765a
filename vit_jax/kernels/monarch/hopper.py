"""Extents of the Monarch kernel for Hopper GPUs: what lies in shared memory, in which tiles.

The matrix unit takes 64 rows, 8 to 256 columns and, with the widest swizzle, 64 summands at a time from shared memory;
both operands must lie in tiles of one swizzle, 64, 32 or 16 columns. Sizes that do not fit are filled up with zeros in
the weights where that costs little, or lead to a narrower swizzle.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

from vit_jax.kernels.monarch.layout import Sizes
from vit_jax.kernels.windows import up

MEMORY = 227 * 1024 - 6 * 1024
"""Bytes of shared memory that the arrays of a block may take; a little is left for barriers and alignment."""
COLUMNS = 256
"""Most columns of an accumulator: 128 registers of each thread."""
STEPS = 512
"""Most steps: the kernel is unrolled over them."""
SWIZZLES = (64, 32, 16)


class Plan(NamedTuple):
    """The extents for some sizes.

    Attributes:
      K: blocks of the factor that comes first.
      parts: of the input of each.
      inputs: of each part.
      piece: the same, filled up to a multiple of 16.
      slot: T, filled up to a multiple of 8.
      window: columns of the first product; those behind the slot are zeros.
      swizzle1: columns of a tile of the first product's operands.
      step1: summands in a step of the first product; divides piece.
      L: blocks of the factor that comes second.
      out_parts: of the output of each.
      outputs: of each part.
      out_tile: columns of the second product.
      together: blocks of the first factor whose values lie side by side.
      swizzle2: columns of a tile of the second product's operands.
      step2: summands in a step of the second product.
      groups: of four warps, each for 64 rows.
      stages: of the rings in which operands arrive.
      rows: of the operands, filled up to a multiple of 8 and at least a tile.
    """

    K: int
    parts: int
    inputs: int
    piece: int
    slot: int
    window: int
    swizzle1: int
    step1: int
    L: int
    out_parts: int
    outputs: int
    out_tile: int
    together: int
    swizzle2: int
    step2: int
    groups: int
    stages: int
    rows: int

    @property
    def tile(self) -> int:
        """Rows of a program."""
        return 64 * self.groups

    @property
    def width(self) -> int:
        """Outputs of a part, filled up to whole tiles."""
        return up(self.outputs, self.out_tile)

    @property
    def tiles(self) -> int:
        """Tiles of the output of a block."""
        return self.out_parts * self.width // self.out_tile

    @property
    def area(self) -> int:
        """Multiplications per row, filled up with zeros."""
        return self.L * self.K * (self.parts * self.piece * self.window + self.slot * self.out_parts * self.width)

    @property
    def steps(self) -> tuple[int, int]:
        """Of both products."""
        return self.K * self.parts * self.piece // self.step1, self.tiles * self.K * self.slot // self.step2

    @property
    def memory(self) -> int:
        """Bytes of shared memory."""
        ring = self.step1 * (self.tile + self.window) + self.step2 * self.out_tile
        rest = self.tile * (self.K * self.slot + self.out_tile)
        return 2 * (self.stages * ring + rest) + 4 * self.tiles * self.out_tile


@functools.cache
def plan(sizes: Sizes, rows: int, swap: bool) -> Plan | str:
    """The extents of the product, or of the gradient of its input (``swap``); or why there are none.

    Of those that fit: two groups of warps before one, for they share the weights; long steps before short ones, three
    stages before two, wide tiles of the output before narrow ones.
    """
    K, P, T, L, S, parts = sizes
    near, far = (K, parts, P // parts), (L, 1, S)
    (K, parts, inputs), (L, out_parts, outputs) = (far, near) if swap else (near, far)
    # Two blocks of 8 values side by side came out wrong on an H200 (jax 0.11.2): the second block's products were lost.
    narrow = K * up(T, 8)
    piece, slot = up(inputs, 16), up(T, 8 if narrow % 16 == 0 and narrow > 16 else 16)
    if slot > COLUMNS:
        return f"a block gives {T} values to each of the other factor, more than {COLUMNS}"
    found = []
    for groups, (swizzle1, step1) in itertools.product((2, 1) if rows > 64 else (1,), _steps(piece, slot)):
        window, tall = up(slot, swizzle1), max(up(rows, 8), 64 * groups)
        sides = [c for c in range(1, K + 1) if K % c == 0 and c * slot % 16 == 0]
        sides = [c for c in sides if (c - 1) * slot + window <= COLUMNS]
        if not sides:
            continue
        together = max(sides, key=lambda c: (_widest(c * slot), c))
        wide = min(_widest(together * slot), 64 if outputs > 32 else 32)
        step2 = max(s for s in (64, 48, 32, 16) if together * slot % s == 0 and s % wide == 0)
        for stages, out_tile in itertools.product((3, 2), _out_tiles(outputs, wide)):
            first = K, parts, inputs, piece, slot, window, swizzle1, step1
            found.append(Plan(*first, L, out_parts, outputs, out_tile, together, wide, step2, groups, stages, tall))
    fits = [p for p in found if p.memory <= MEMORY]
    if not fits:
        return f"64 rows of {K * slot} values between the factors leave too little of 227 KiB of shared memory"
    if sum(fits[0].steps) > STEPS:
        return f"{sum(fits[0].steps)} steps are more than the {STEPS} it is unrolled for"
    return fits[0]


def _steps(piece: int, slot: int) -> list[tuple[int, int]]:
    """Swizzles of the first product and summands of a step: wide first, if at most a third is filled up by zeros."""
    swizzles = [s for s in SWIZZLES if piece % s == 0 and (3 * up(slot, s) <= 4 * slot or s == SWIZZLES[-1])]
    return [(s, t) for s in swizzles for t in (64, 48, 32, 16) if piece % t == 0 and t % s == 0]


def _out_tiles(outputs: int, swizzle: int) -> list[int]:
    """Tiles that need the fewest zeros behind the outputs, wide first."""
    tiles = range(COLUMNS, 0, -max(32, swizzle))
    return [t for t in tiles if up(outputs, t) == min(up(outputs, u) for u in tiles)]


def _widest(columns: int) -> int:
    return next(s for s in SWIZZLES if columns % s == 0)
