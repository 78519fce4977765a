"""Where the fused kernel keeps what, so that nothing moves across the 128 lanes of a register.

Blocks are seldom a multiple of 128 wide. Two devices make every slice of an activation begin at one all the same:

- Windows. A block of the input, or of the output, is met through the aligned window around it
  (:mod:`vit_jax.kernels.windows`); in the weight the rows of its neighbours are zeros.
- Slots. The T values that a block of the first factor gives to a block of the second take a slot of lanes, zeros
  behind them. Where several slots share a register, their order differs from block to block: block ``k`` of the first
  factor holds what is for block ``l`` in the slot ``(l - k) % share``, and block ``l`` of the second expects the values
  of ``k`` there as well. So they never leave their lanes, and changing from one order to the other is a select.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.kernels.monarch.layout import Sizes, first, first_back
from vit_jax.kernels.windows import LANES, Window, around, height, up


class Tiling(NamedTuple):
    """The layout for some sizes.

    Attributes:
      sizes: of the product.
      slot: lanes for T values: 8, 16, 32, 64 or a multiple of 128.
      share: slots in one register; divides K and L.
      sources: for every block of the first factor the windows of the input, one per part.
      targets: for every block of the second factor the window of the output.
    """

    sizes: Sizes
    slot: int
    share: int
    sources: tuple[tuple[Window, ...], ...]
    targets: tuple[Window, ...]

    @property
    def flat_sources(self) -> tuple[Window, ...]:
        return tuple(w for windows in self.sources for w in windows)

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of the laid-out weights: rows by windows, columns by slots."""
        sizes = self.sizes
        return (height(self.flat_sources), sizes.L * self.slot), (height(self.targets), sizes.K * self.slot)

    @property
    def area(self) -> int:
        """Multiplications per row, filled up with zeros."""
        (a, b), (c, d) = self.shapes
        return a * b + c * d


@functools.cache
def tiling(sizes: Sizes) -> Tiling:
    """The layout with the narrowest slots."""
    K, width, T, L, S, parts = sizes
    fits = [s for s in (8, 16, 32, 64) if s >= T and K % (LANES // s) == 0 and L % (LANES // s) == 0]
    slot = min(fits, default=up(T))
    piece = width // parts
    starts = [j * (sizes.inputs // parts) + k * piece for k in range(K) for j in range(parts)]
    windows = around(starts, piece, sizes.inputs)
    sources = tuple(windows[k * parts : (k + 1) * parts] for k in range(K))
    targets = around(range(0, sizes.outputs, S), S, sizes.outputs)
    return Tiling(sizes, slot, max(1, LANES // slot), sources, targets)


def lay_out(plan: Tiling, kernel_1: jax.Array, kernel_2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The factors -> the weights ``[windows of the input, L slots]`` and ``[windows of the output, K slots]``."""
    K, _, T, L, S, _ = plan.sizes
    to_l, to_k = _orders(plan)
    w1 = first(plan.sizes, kernel_1)[np.arange(K)[:, None], to_l]  # [K, slots for L, T, parts, P/parts]
    w1 = jnp.reshape(_pad(plan, jnp.transpose(w1, (0, 3, 4, 1, 2))), (plan.sizes.inputs, -1))
    w2 = jnp.transpose(jnp.reshape(kernel_2, (L, S, K, T)), (0, 2, 1, 3))[np.arange(L)[:, None], to_k]
    w2 = jnp.reshape(_pad(plan, jnp.transpose(w2, (0, 2, 1, 3))), (plan.sizes.outputs, -1))
    filled = []
    for weight, rows, (total, _) in zip((w1, w2), _own_rows(plan), plan.shapes, strict=True):
        index = np.full(total, weight.shape[0])  # out of range: zeros
        index[rows] = np.arange(weight.shape[0])
        filled.append(jnp.take(weight, index, axis=0, mode="fill", fill_value=0))
    return filled[0], filled[1]


def take_back(plan: Tiling, w1: jax.Array, w2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The adjoint of :func:`lay_out`: gradients of the laid-out weights -> of the factors."""
    K, P, T, L, S, parts = plan.sizes
    to_l, to_k = (np.argsort(order, axis=1) for order in _orders(plan))
    rows1, rows2 = _own_rows(plan)
    w1 = jnp.reshape(w1[rows1], (K, parts, P // parts, L, plan.slot))[..., :T]
    w1 = jnp.transpose(w1, (0, 3, 4, 1, 2))[np.arange(K)[:, None], to_l]
    w2 = jnp.reshape(w2[rows2], (L, S, K, plan.slot))[..., :T]
    w2 = jnp.transpose(w2, (0, 2, 1, 3))[np.arange(L)[:, None], to_k]
    return first_back(plan.sizes, w1), jnp.reshape(jnp.transpose(w2, (0, 2, 1, 3)), (L, S, K * T))


def _pad(plan: Tiling, x: jax.Array) -> jax.Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, plan.slot - plan.sizes.T)])


def _orders(plan: Tiling) -> tuple[np.ndarray, np.ndarray]:
    """Which l each slot of each block k holds, ``[K, L]``, and which k each slot of each block l, ``[L, K]``."""
    K, L, share = plan.sizes.K, plan.sizes.L, plan.share
    k, l_slot = np.mgrid[:K, :L]
    l, k_slot = np.mgrid[:L, :K]  # noqa: E741
    to_l = l_slot // share * share + (l_slot + k) % share
    return to_l, k_slot // share * share + (l - k_slot) % share


def _own_rows(plan: Tiling) -> tuple[np.ndarray, np.ndarray]:
    """Where the blocks' own rows lie among those of their windows."""
    sizes = plan.sizes
    pairs = (plan.flat_sources, sizes.P // sizes.parts), (plan.targets, sizes.S)
    one, two = (np.concatenate([w.row + w.skip + np.arange(size) for w in windows]) for windows, size in pairs)
    return one, two


def exchange(plan: Tiling, blocks: Sequence[jax.Array], step: int) -> list[jax.Array]:
    """Slots of the first factor's blocks -> of the second's (``step`` -1), or back (``step`` 1).

    Args:
      plan: the layout.
      blocks: per block of one factor ``[rows, slots of the other's blocks]``, in a type of 32 bits.
      step: which way.
    """
    share, width = plan.share, plan.share * plan.slot
    lane = jax.lax.broadcasted_iota(jnp.int32, (blocks[0].shape[0], width), 1)
    found = []
    for new in range(blocks[0].shape[1] // plan.slot):
        group = slice(new // share * width, (new // share + 1) * width)
        registers = []
        for base in range(0, len(blocks), share):
            pieces = [blocks[base + (new + step * j) % share][:, group] for j in range(share)]
            mixed = pieces[-1]
            for j in reversed(range(share - 1)):
                mixed = jnp.where(lane < (j + 1) * plan.slot, pieces[j], mixed)
            registers.append(mixed)
        found.append(registers[0] if len(registers) == 1 else jnp.concatenate(registers, 1))
    return found
