"""Patches, positions and extra tokens."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.layers.linear import DType, logical, matmul
from vit_jax.types import UserError


class PatchEmbed(nn.Module):
    """Non-overlapping patches times a matrix: the convolution with stride = size, as one product.

    Attributes:
      patch: side P in pixels.
      width: D.
      dtype: compute type; parameters are ``kernel [P, P, C, D]`` and ``bias [D]``, as of a convolution.
    """

    patch: int
    width: int
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """``[B, H, W, C] -> [B, H / P, W / P, D]``.

        Raises:
          UserError: the image does not divide into patches.
        """
        b, height, width, channels = image.shape
        p = self.patch
        if height % p or width % p:
            fit = f"{max(height // p, 1) * p}x{max(width // p, 1) * p}"
            raise UserError(
                f"image size {height}x{width} is not divisible by the patch size {p}; use {fit} for example."
            )
        axes = (None, None, "patch", "embed")
        shape = (p, p, channels, self.width)
        kernel = self.param("kernel", logical(nn.initializers.lecun_normal(), axes), shape)
        bias = self.param("bias", logical(nn.initializers.zeros, axes[-1:]), shape[-1:])
        x = image.astype(self.dtype).reshape(b, height // p, p, width // p, p, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, height // p, width // p, p * p * channels)
        return matmul(x, kernel.reshape(-1, self.width), bias)


class Positions(nn.Module):
    """Learned position embeddings, added: parameter ``embedding [1, N, D]``."""

    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``.

        Raises:
          UserError: the parameters belong to another number of tokens.
        """
        shape = (1, *x.shape[1:])
        if self.has_variable("params", "embedding"):
            stored = nn.meta.unbox(self.get_variable("params", "embedding")).shape
            if stored != shape:
                raise UserError(
                    f"the position embeddings are for {stored[1]} tokens but the image gives {shape[1]}; keep the "
                    "image size of the checkpoint or resize them (vit_jax.layers.embed.resize_positions)."
                )
        init = logical(nn.initializers.normal(0.02), (None, "tokens", "embed"))
        return x + self.param("embedding", init, shape).astype(x.dtype)


def sincos_positions(height: int, width: int, features: int) -> np.ndarray:
    """Fixed 2D embeddings float32 ``[height * width, features]`` as in MoCo v3 (arXiv:2104.02057).

    Raises:
      UserError: ``features`` is not divisible by 4.
    """
    if features % 4:
        raise UserError(f"sin-cos positions need a width divisible by 4, got {features}; use positions='learn'.")
    omega = 10_000.0 ** -(np.arange(features // 4) / max(features // 4 - 1, 1))
    y, x = (grid.reshape(-1, 1) * omega for grid in np.mgrid[:height, :width])
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


def resize_positions(
    positions: jax.Array,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    num_prefix: int,
    method: str = "bilinear",
) -> jax.Array:
    """Positions of one grid of patches for another.

    Args:
      positions: ``[1, num_prefix + h * w, D]``.
      old_grid: its ``(h, w)``.
      new_grid: the wanted one.
      num_prefix: tokens before the grid (1 with a cls token), kept as they are.
      method: of ``jax.image.resize``: "bilinear" as in the original, "cubic-pytorch" for timm's bicubic.

    Returns:
      ``[1, num_prefix + h' * w', D]``.

    Raises:
      UserError: ``positions`` does not hold ``old_grid``.
    """
    count, features = positions.shape[1:]
    if count != num_prefix + old_grid[0] * old_grid[1]:
        raise UserError(
            f"{count} position embeddings are not {num_prefix} and a grid of {old_grid[0]}x{old_grid[1]}; "
            "check the image and patch size of the checkpoint."
        )
    prefix, grid = positions[:, :num_prefix], positions[:, num_prefix:]
    grid = jax.image.resize(grid.reshape(1, *old_grid, features), (1, *new_grid, features), method, antialias=True)
    return jnp.concatenate([prefix, grid.reshape(1, -1, features)], axis=1)
