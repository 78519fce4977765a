"""Where the TPU kernel meets the blocks: every slice of an activation begins at a multiple of 128 lanes.

As few neighbouring blocks form a group as make it a multiple of 128 wide on both sides, or all of them; a group is one
step of the kernel. Inside it a block is met through the aligned window around it (``vit_jax.kernels.windows``);
in the weight the rows and columns of its neighbours are zeros. The windows of all groups are alike.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.kernels.windows import LANES, Window, around, height, up


class Tiling(NamedTuple):
    """The layout of a kernel ``[n, size, features]``.

    Attributes:
      groups: number of groups of blocks.
      size: inputs of a block.
      features: outputs of a block.
      sources: for every block of a group the window of the group's inputs.
      targets: for every block of a group the window of the group's outputs; ``row`` has no meaning.
    """

    groups: int
    size: int
    features: int
    sources: tuple[Window, ...]
    targets: tuple[Window, ...]

    @property
    def inputs(self) -> int:
        """Of a group."""
        return len(self.sources) * self.size

    @property
    def outputs(self) -> int:
        """Of a group."""
        return len(self.targets) * self.features

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the laid-out weight: groups, rows by windows, columns of the widest window."""
        return self.groups, height(self.sources), max(w.stop - w.start for w in self.targets)

    @property
    def area(self) -> int:
        """Multiplications per row, filled up to whole registers."""
        pairs = zip(self.sources, self.targets, strict=True)
        return self.groups * sum(up(s.stop - s.start) * up(t.stop - t.start) for s, t in pairs)


@functools.cache
def tiling(n: int, size: int, features: int) -> Tiling:
    """The layout with the smallest groups."""
    group = math.lcm(*(LANES // math.gcd(LANES, width) for width in (size, features)))
    group = group if n % group == 0 else n
    sources, targets = (around(range(0, group * width, width), width, group * width) for width in (size, features))
    return Tiling(n // group, size, features, sources, targets)


def lay_out(plan: Tiling, kernel: jax.Array) -> jax.Array:
    """``[n, size, features]`` -> the weight of :attr:`Tiling.shape`."""
    _, rows, width = plan.shape
    blocks = jnp.reshape(kernel, (plan.groups, -1, plan.size, plan.features))
    padded = []
    for b, (source, target) in enumerate(zip(plan.sources, plan.targets, strict=True)):
        stop = (*(w.row for w in plan.sources), rows)[b + 1]
        below = stop - source.row - source.skip - plan.size
        right = width - target.skip - plan.features
        padded.append(jnp.pad(blocks[:, b], ((0, 0), (source.skip, below), (target.skip, right))))
    return jnp.concatenate(padded, 1)


def take_back(plan: Tiling, weight: jax.Array) -> jax.Array:
    """The adjoint of :func:`lay_out`: the gradient of the laid-out weight -> of the kernel."""
    blocks = []
    for source, target in zip(plan.sources, plan.targets, strict=True):
        row = source.row + source.skip
        blocks.append(weight[:, row : row + plan.size, target.skip : target.skip + plan.features])
    return jnp.reshape(jnp.stack(blocks, 1), (-1, plan.size, plan.features))
