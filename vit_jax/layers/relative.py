"""Relative positions as a term of attention's logits (Bao et al. 2022, arXiv:2106.08254; Liu et al. 2021)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.checks import Checked, Pixels
from vit_jax.layers.linear import logical
from vit_jax.types import UserError

PREFIX = 3
"""Entries for what has no distance: from the class token to a patch, from a patch to it, from it to itself."""


class RelativeBias(nn.Module):
    """``table [(2 H - 1) (2 W - 1) + 3, K]``: a number for every distance in rows and columns and every head.

    Attributes:
      height: rows H of the grid.
      width: its columns W.
    """

    height: int
    width: int

    @nn.compact
    def __call__(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """``q, k [B, N, K, E]``, of a grid with or without a class token before it -> float32 ``[1, K, N, N]``.

        Raises:
          UserError: the tokens are of another grid.
        """
        cells, (tokens, heads) = self.height * self.width, q.shape[1:3]
        if tokens not in (cells, cells + 1) or k.shape[1] != tokens:
            raise UserError(
                f"relative positions of {self.height}x{self.width} patches met {tokens} tokens; keep the image size of "
                "the weights, or give the grid of yours."
            )
        rows = (2 * self.height - 1) * (2 * self.width - 1) + PREFIX
        init = logical(nn.initializers.zeros, (None, "heads"))
        table = self.param("table", init, (rows, heads)).astype(jnp.float32)
        index = distances(self.height, self.width)[cells + 1 - tokens :, cells + 1 - tokens :]
        return jnp.moveaxis(table[index], -1, 0)[None]


def distances(height: int, width: int) -> np.ndarray:
    """Row of the table for every pair of tokens, int ``[1 + height * width] * 2``; the first is the class token."""
    at = np.indices((height, width)).reshape(2, -1)
    rows, columns = at[:, :, None] - at[:, None]
    inner = (rows + height - 1) * (2 * width - 1) + columns + width - 1
    last = (2 * height - 1) * (2 * width - 1)
    found = np.full((1 + height * width,) * 2, last)
    found[1:, 1:], found[1:, 0], found[0, 0] = inner, last + 1, last + 2
    return found


@dataclasses.dataclass(frozen=True)
class Relative(Checked):
    """A :class:`RelativeBias` in every block, as BEiT has it.

    Attributes:
      height: rows of the grid.
      width: its columns; None: as many.
    """

    height: Pixels
    width: Pixels | None = None

    def __call__(self, *, name: str) -> RelativeBias:
        return RelativeBias(self.height, self.width or self.height, name=name)
