"""Rotary positions along the axes of a grid (Su et al. 2021, arXiv:2104.09864; two axes as Heo et al. 2024)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Axial:
    """Half of a head's channels turn with the row, half with the column.

    Attributes:
      base: of the wavelengths.
    """

    base: float = 100.0

    def __call__(self, *, name: str):
        return self.rotate

    def coordinates(self, height: int, width: int) -> np.ndarray:
        """Row and column of every token of a grid, float32 ``[height * width, 2]``."""
        return np.indices((height, width)).reshape(2, -1).T.astype(np.float32)

    def rotate(self, q: jax.Array, k: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
        size, axes = q.shape[-1], at.shape[1]
        each = size // (2 * axes)
        rates = self.base ** (-jnp.arange(each, dtype=jnp.float32) / each)
        angle = (at[:, :, None] * rates[None, None]).reshape(1, at.shape[0], 1, -1)
        prefix = q.shape[1] - at.shape[0]  # cls and registers do not turn

        def turn(x: jax.Array) -> jax.Array:
            still, x = x[:, :prefix], x[:, prefix:].astype(jnp.float32)
            a, b = x[..., : size // 2], x[..., size // 2 :]
            cos, sin = jnp.broadcast_to(jnp.cos(angle), a.shape), jnp.broadcast_to(jnp.sin(angle), a.shape)
            turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
            return jnp.concatenate([still, turned.astype(q.dtype)], 1)

        return turn(q), turn(k)
