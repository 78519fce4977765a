"""Where the fused kernels keep what, so that nothing moves across the 128 lanes of a register.

Blocks are seldom a multiple of 128 wide. Two devices make every slice of an activation begin at one all the same:

- Windows. A block of the input, or of the output, is met through the aligned window around it
  (:mod:`vit_jax.kernels.windows`); in the weight what belongs to its neighbours is zeros.
- Slots. What the T values that a block of one factor gives to a block of the next do not fill of whole registers takes
  a slot of lanes, zeros behind it. Where several slots share a register, their order differs from block to block: block
  ``k`` of the first factor holds what is for block ``l`` in the slot ``(l - k) % share``, and block ``l`` of the second
  expects the values of ``k`` there as well. So they never leave their lanes, and changing from one order to the other
  is a select.

Outputs in natural order are those of a second factor of one block, in which the rows of the blocks are interleaved: the
zeros that this multiplies cost less than a permutation of the output.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.kernels.monarch.layout import Sizes
from vit_jax.kernels.windows import LANES, Window, around, height, up


class Slots(NamedTuple):
    """The values that each of some blocks gives to each of others, in the lanes of both.

    Attributes:
      K: blocks that give.
      L: blocks that take.
      T: values.
      slot: lanes for those of T that fill no register: 0, 8, 16, 32, 64 or 128.
    """

    K: int
    L: int
    T: int
    slot: int

    @property
    def whole(self) -> int:
        """Lanes for those of T that fill registers."""
        return self.T // LANES * LANES

    @property
    def share(self) -> int:
        """Slots in one register."""
        return LANES // self.slot if self.slot else 1

    @property
    def before(self) -> int:
        """Lanes of a block that gives."""
        return self.L * self.whole + up(self.L, self.share) * self.slot

    @property
    def after(self) -> int:
        """Lanes of a block that takes."""
        return self.K * (self.whole + self.slot)

    def lanes(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each value, ``[K, L, T]`` in the block that gives it and ``[L, K, T]`` in the one that takes it."""
        k, l, t = np.ogrid[: self.K, : self.L, : self.T]  # noqa: E741
        share, place, rest = self.share, (l - k) % self.share, t - self.whole
        given = self.L * self.whole + (l // share * share + place) * self.slot + rest
        taken = self.K * self.whole + (k // share * share + place) * self.slot + rest
        given, taken = (np.where(rest < 0, block * self.whole + t, slot) for block, slot in ((l, given), (k, taken)))
        return given, np.swapaxes(taken, 0, 1)


def slots(K: int, L: int, T: int) -> Slots:
    """The narrowest that the blocks allow."""
    rest = T % LANES
    shared = [s for s in (8, 16, 32, 64) if K % (LANES // s) == 0 and (L == 1 or L % (LANES // s) == 0)]
    return Slots(K, L, T, min((s for s in shared if s >= rest), default=LANES) if rest else 0)


def exchange(plan: Slots, blocks: Sequence[jax.Array], back: bool = False) -> list[jax.Array]:
    """What is in the lanes of the blocks that give -> in those of the blocks that take, or ``back``.

    Args:
      plan: the lanes.
      blocks: per block ``[rows, lanes]``, in a type of 32 bits.
      back: which way.
    """
    count, step = (plan.K, 1) if back else (plan.L, -1)
    width, whole, few = plan.share * plan.slot, plan.whole, min(plan.share, len(blocks))
    lane = jax.lax.broadcasted_iota(jnp.int32, (blocks[0].shape[0], LANES), 1)
    found = []
    for new in range(count):
        registers = [b[:, new * whole : (new + 1) * whole] for b in blocks] if whole else []
        start = count * whole + new // plan.share * width
        for base in range(0, len(blocks) if plan.slot else 0, few):
            pieces = [blocks[base + (new + step * j) % few][:, start : start + width] for j in range(few)]
            mixed = pieces[-1]
            for j in reversed(range(few - 1)):
                mixed = jnp.where(lane < (j + 1) * plan.slot, pieces[j], mixed)
            registers.append(mixed)
        found.append(registers[0] if len(registers) == 1 else jnp.concatenate(registers, 1))
    return found


class Tiling(NamedTuple):
    """The layout for some sizes.

    Attributes:
      sizes: of the product.
      slots: between the factors; natural outputs are those of one block of the second factor.
      sources: for every block of the first factor the windows of the input, one per part.
      targets: for every block of the second factor the window of the output.
      given: slots in which the map before leaves the input, instead of windows; or None.
      taken: slots in which the map behind takes the output, instead of windows; or None.
    """

    sizes: Sizes
    slots: Slots
    sources: tuple[tuple[Window, ...], ...]
    targets: tuple[Window, ...]
    given: Slots | None = None
    taken: Slots | None = None

    @property
    def flat_sources(self) -> tuple[Window, ...]:
        return tuple(w for windows in self.sources for w in windows)

    @property
    def shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Of the laid-out weights: blocks, outputs, inputs."""
        tall, wide = max(map(height, self.sources)), max(up(w.stop - w.start) for w in self.targets)
        return (self.slots.K, self.slots.before, tall), (self.slots.L, wide, self.slots.after)

    @property
    def area(self) -> int:
        """Multiplications per row, filled up with zeros."""
        tall, wide = (sum(up(w.stop - w.start) for w in windows) for windows in (self.flat_sources, self.targets))
        return tall * self.slots.before + wide * self.slots.after

    @property
    def size(self) -> int:
        """Elements of the laid-out weights."""
        return sum(map(math.prod, self.shapes))


@functools.cache
def tiling(sizes: Sizes, blocked: bool, given: Slots | None = None, taken: Slots | None = None) -> Tiling:
    """The layout with the narrowest slots."""
    K, width, T, L, S, parts = sizes
    piece, between = width // parts, slots(K, L, T) if blocked else slots(K, 1, T * L)
    starts = [[j * (sizes.inputs // parts) + k * piece for j in range(parts)] for k in range(K)]
    sources = tuple(around(row, piece, sizes.inputs) for row in starts)
    targets = tuple(w._replace(row=0) for w in around(range(0, sizes.outputs, S), S, sizes.outputs))
    if not blocked:
        targets = around([0], sizes.outputs, sizes.outputs)
    if given:
        sources = K * ((Window(0, given.after, 0, 0),),)
    if taken:
        targets = L * (Window(0, taken.before, 0, 0),)
    return Tiling(sizes, between, sources, targets, given, taken)


def lay_out(plan: Tiling, kernel_1: jax.Array, kernel_2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The factors -> the weights of :attr:`Tiling.shapes`, in the type that they have."""
    K, P, T, L, _, parts = plan.sizes
    given, taken = plan.slots.lanes()
    if plan.given:
        rows = np.swapaxes(plan.given.lanes()[1], 1, 2)
    else:
        skip = np.asarray([[w.row + w.skip for w in windows] for windows in plan.sources])
        rows = np.arange(P // parts)[:, None] + skip[:, None]
    one, two = plan.shapes
    outputs = np.swapaxes(given, 1, 2)
    w1 = _spread(kernel_1, np.reshape(outputs, (K, -1)), one[1], np.reshape(rows, (K, P)), one[2])
    inputs = np.moveaxis(np.reshape(taken, (plan.slots.L, K, T, -1)), 3, 1)
    w2 = _spread(kernel_2, _outputs(plan), two[1], np.reshape(inputs, (L, -1)), two[2], plan.slots.L)
    return w1, w2


def take_back(plan: Tiling, w1: jax.Array, w2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The adjoint of :func:`lay_out`: gradients of the laid-out weights -> of the factors."""
    K, P, T, L, S, _ = plan.sizes
    shapes = [jax.ShapeDtypeStruct(shape, w1.dtype) for shape in ((K, T * L, P), (L, S, K * T))]
    one, two = jax.linear_transpose(functools.partial(lay_out, plan), *shapes)((w1, w2))
    return one, two


def lay_out_bias(plan: Tiling, bias: jax.Array) -> jax.Array:
    """``bias [(S L)]``, natural -> float32 ``[blocks, 1, outputs]`` as the second weight has them."""
    _, _, _, L, S, _ = plan.sizes
    blocks = jnp.reshape(jnp.transpose(jnp.reshape(bias.astype(jnp.float32), (S, L))), (L, 1, S))
    return _spread(blocks, np.zeros((L, 1), int), 1, _outputs(plan), plan.shapes[1][1], plan.slots.L)


def _outputs(plan: Tiling) -> np.ndarray:
    """Where the outputs of the second factor's blocks are among those of the weight, ``[L, S]``."""
    _, _, _, L, S, _ = plan.sizes
    if plan.taken:
        return np.reshape(plan.taken.lanes()[0], (L, S))
    if plan.slots.L < L:
        return np.arange(S) * L + np.arange(L)[:, None]
    return np.arange(S) + np.asarray([w.skip for w in plan.targets])[:, None]


def _spread(
    blocks: jax.Array, rows: np.ndarray, height: int, columns: np.ndarray, width: int, groups: int | None = None
) -> jax.Array:
    """``[B, m, n]`` -> ``[groups, height, width]``: zeros, in which a block has its rows and columns where it is said.

    Blocks of a group are laid over each other. As products with zeros and ones, which are exact: for both maps of an
    MLP of width 768 the compiler for a v5e chip expects 115 thousand cycles so, of gathers and pads 143 for one map.
    """
    B, m, _ = blocks.shape
    one, two = (
        (jnp.asarray(p)[..., None] == np.arange(n)[None, None]).astype(blocks.dtype)
        for p, n in ((rows, height), (columns, width))
    )
    y = jnp.einsum("bmn,bnw->bmw", blocks, two, precision="highest")
    one, y = (jnp.reshape(a, (groups or B, -1, m, a.shape[-1])) for a in (one, y))
    return jnp.einsum("gbmh,gbmw->ghw", one, y, precision="highest")
