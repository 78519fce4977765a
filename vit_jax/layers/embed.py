"""Patches, positions and extra tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import config
from vit_jax.layers.linear import DType, logical, matmul
from vit_jax.types import Array, Patches, UserError

Grids = tuple[tuple[int, int], tuple[int, int]]
"""(rows, columns) of one grid of patches and of another."""
CUT = "bilinear_plain"
"""How FlexiViT resizes kernels in its forward pass, a name in :data:`RESIZES`: as ``tf.image.resize`` does it."""


class PatchEmbed(nn.Module):
    """Non-overlapping patches times a matrix: the convolution with stride = size, as one product.

    Attributes:
      patch: side P in pixels.
      width: channels D of a token.
      dtype: compute type; parameters are ``kernel [P, P, C, D]`` and ``bias [D]``, as of a convolution.
      use_bias: whether a bias is added.
      cut: side of the patches where it is another than P: the kernel is resized as :func:`resize_patches` does it, and
        a gradient reaches it through that; None: P.
    """

    patch: int
    width: int
    dtype: DType = "float32"
    use_bias: bool = True
    cut: int | None = None

    @nn.compact
    def __call__(self, image: jax.Array | Patches) -> jax.Array:
        """``[B, H, W, C] -> [B, H / P, W / P, D]``, :class:`Patches` ``-> [B, N, D]``.

        Raises:
          UserError: the image does not divide into patches, or they have another size.
        """
        x = image.pixels.astype(self.dtype) if isinstance(image, Patches) else self._flat(image)
        p = self.cut or self.patch
        channels, rest = divmod(x.shape[-1], p * p)
        if rest:
            raise UserError(f"patches of {x.shape[-1]} values are not {p}x{p} pixels; set patch.")
        axes = (None, None, "patch", "embed")
        shape = (self.patch, self.patch, channels, self.width)
        kernel = self.param("kernel", logical(nn.initializers.lecun_normal(), axes), shape)
        bias = self.param("bias", logical(nn.initializers.zeros, axes[-1:]), shape[-1:]) if self.use_bias else None
        if p != self.patch:
            inverse = _inverse(self.patch, p, CUT)
            kernel = along_both(inverse, inverse, kernel)
        return matmul(x, kernel.reshape(-1, self.width), bias)

    def _flat(self, image: jax.Array) -> jax.Array:
        """``[B, H, W, C] -> [B, H / P, W / P, P * P * C]``."""
        b, height, width, channels = image.shape
        p = self.cut or self.patch
        rows, columns = grid_of(height, width, p)
        x = image.astype(self.dtype).reshape(b, rows, p, columns, p, channels)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows, columns, p * p * channels)


def grid_of(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows and columns of patches of an image.

    Raises:
      UserError: it does not divide into them.
    """
    if height % patch or width % patch:
        fit = f"{max(height // patch, 1) * patch}x{max(width // patch, 1) * patch}"
        raise UserError(
            f"image size {height}x{width} is not divisible by the patch size {patch}; use {fit} for example."
        )
    return height // patch, width // patch


class PositionEmbedding(nn.Module):
    """Learned position embeddings, added: parameter ``embedding [1, N, D]``.

    Attributes:
      dtype: compute type; parameters are float32.
      length: number of positions; None is one for each token.
    """

    dtype: DType = "float32"
    length: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, start: jax.Array | int = 0, grids: Grids | None = None) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``; with a ``length``, the first token is at ``start``.

        With ``grids`` parameters are those of the first, and are resized to the second, which the last tokens are of.

        Raises:
          UserError: the parameters belong to another number of tokens, or there are fewer than tokens.
        """
        if self.length is not None:
            return self._from(x, start, self.length)
        old, new = grids or ((0, 0), (0, 0))
        prefix = x.shape[1] - new[0] * new[1]
        shape = (1, prefix + old[0] * old[1], x.shape[2])
        if self.has_variable("params", "embedding"):
            stored = nn.meta.unbox(self.get_variable("params", "embedding")).shape
            if stored != shape:
                raise UserError(
                    f"the position embeddings are for {stored[1]} tokens but the image gives {shape[1]}; keep the "
                    "image size of the checkpoint or resize them (vit_jax.layers.embed.resize_positions)."
                )
        table = self._table(shape)
        if old != new:
            rows, columns = (resize_matrix(o, n) for o, n in zip(old, new, strict=True))
            grid = along_both(rows, columns, table[0, prefix:].reshape(*old, -1)).reshape(1, -1, shape[2])
            table = jnp.concatenate([table[:, :prefix], grid], axis=1)
        return x + table.astype(x.dtype)

    def _from(self, x: jax.Array, start: jax.Array | int, length: int) -> jax.Array:
        if x.shape[1] > length:
            raise UserError(f"a text of {x.shape[1]} tokens is longer than the {length} positions of the text tower.")
        rows = jax.lax.dynamic_slice_in_dim(self._table((1, length, x.shape[-1])), start, x.shape[1], axis=1)
        return x + rows.astype(x.dtype)

    def _table(self, shape: tuple[int, ...]) -> jax.Array:
        return self.param("embedding", logical(nn.initializers.normal(0.02), (None, "tokens", "embed")), shape)


class GridPositions(nn.Module):
    """Learned positions of a square grid, resized to every image's own and added: ``embedding [1, side * side, D]``.

    Resized as ``"bilinear"`` of :data:`RESIZES`, antialiased: NaFlex of SigLIP 2 (Tschannen et al. 2025,
    arXiv:2502.14786, section 2.4.2; ``models/proj/image_text/naflex_vit.py`` of big_vision).

    Attributes:
      side: of the grid that is stored.
    """

    side: int

    @nn.compact
    def __call__(self, x: jax.Array, at: Array, grids: Array) -> jax.Array:
        """``[B, N, D] -> [B, N, D]``, of images with ``grids [B, 2]`` and tokens ``at [B, N, 2]``; B may be 1."""
        init = logical(nn.initializers.normal(0.02), (None, "tokens", "embed"))
        table = self.param("embedding", init, (1, self.side**2, x.shape[-1]))[0]
        scale = self.side / jnp.asarray(grids, jnp.float32)[:, None]
        centres = (jnp.asarray(at, jnp.float32) + 0.5) * scale - 0.5
        there = jnp.arange(self.side, dtype=jnp.float32)[None, None, None]
        distance = jnp.abs(there - centres[..., None]) / jnp.maximum(scale, 1.0)[..., None]
        weights = jnp.maximum(1 - distance, 0)
        weights /= weights.sum(axis=-1, keepdims=True)
        both = (weights[..., 0, :, None] * weights[..., 1, None, :]).reshape(*weights.shape[:2], -1)
        return x + jnp.dot(both, table, precision="highest").astype(x.dtype)


class TokenEmbed(nn.Module):
    """A vector for each token: parameter ``embedding [V, D]``.

    Attributes:
      vocab_size: number of tokens V in the vocabulary.
      width: channels D of a token.
      dtype: compute type; parameters are float32.
    """

    vocab_size: int
    width: int
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """int32 ``[B, N]`` -> ``[B, N, D]``; NaN for a token outside the vocabulary."""
        init = logical(nn.initializers.normal(0.02), ("vocab", "embed"))
        table = self.param("embedding", init, (self.vocab_size, self.width))
        return jnp.take(table, tokens, axis=0, mode="fill", fill_value=jnp.nan).astype(self.dtype)


def sincos_positions(height: int, width: int, features: int, unit: tuple[int, int] | None = None) -> np.ndarray:
    """Fixed 2D embeddings float32 ``[height * width, features]`` as in MoCo v3 (arXiv:2104.02057).

    Distances are counted in rows and columns of the grid ``unit``, by default this one.

    Raises:
      UserError: ``features`` is not divisible by 4.
    """
    if features % 4:
        raise UserError(f"sin-cos positions need a width divisible by 4, got {features}; use positions='learn'.")
    omega = 10_000.0 ** -(np.arange(features // 4) / max(features // 4 - 1, 1))
    centres = [
        (np.arange(n) + 0.5) * u / n - 0.5 for n, u in zip((height, width), unit or (height, width), strict=True)
    ]
    y, x = (grid.reshape(-1, 1) * omega for grid in np.meshgrid(*centres, indexing="ij"))
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


class Resize(NamedTuple):
    """How samples on one grid become samples on another.

    Attributes:
      kernel: distance in samples -> weight; 0 from a distance of 2 on.
      antialias: stretch the kernel where the new grid is coarser, and ignore what lies beyond the border; otherwise the
        border is repeated.
      corners: whether the outermost samples of both grids coincide, or the outer edges of their cells.
    """

    kernel: Callable[[np.ndarray], np.ndarray]
    antialias: bool
    corners: bool = False


def _hat(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(a: float, x: np.ndarray) -> np.ndarray:
    """Keys 1981; ``a`` is the slope at distance 1."""
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


RESIZES: dict[str, Resize] = {
    "bilinear": Resize(_hat, True),
    "bilinear_plain": Resize(_hat, False),
    "bilinear_corners": Resize(_hat, False, True),
    "bicubic": Resize(functools.partial(_cubic, -0.5), True),
    "bicubic_plain": Resize(functools.partial(_cubic, -0.75), False),
}
"""``bilinear_corners`` is how the original repository resizes positions, ``bilinear_plain`` how ``tf.image.resize``
resizes images, ``bicubic`` timm's way, ``bicubic_plain`` Hugging Face's."""


def resize_matrix(old: int, new: int, method: str = "bilinear") -> np.ndarray:
    """The linear map float64 ``[new, old]`` that resamples ``old`` samples in a row; its rows sum to 1.

    Raises:
      UsageError: ``method`` is not in :data:`RESIZES`.
    """
    kernel, antialias, corners = config.lookup(RESIZES, method, "resize method")
    step = (old - 1) / max(new - 1, 1) if corners else old / new
    centres = np.arange(new) * step + (0.0 if corners else (step - 1) / 2)
    taps = np.arange(-2, old + 2)  # as far beyond the border as an unstretched kernel reaches
    weights = kernel((centres[:, None] - taps) / (max(step, 1.0) if antialias else 1.0))
    source = taps if antialias else np.clip(taps, 0, old - 1)
    weights = weights @ (source[:, None] == np.arange(old))
    return weights / weights.sum(axis=1, keepdims=True)


def resize_positions(
    positions: Array,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    num_prefix: int,
    method: str = "bilinear",
) -> np.ndarray:
    """Positions of one grid of patches for another, computed on the host in float64.

    Args:
      positions: ``[1, num_prefix + h * w, D]``.
      old_grid: its ``(h, w)``.
      new_grid: the wanted one.
      num_prefix: tokens before the grid (1 with a cls token), kept as they are.
      method: a name in :data:`RESIZES`.

    Returns:
      ``[1, num_prefix + h' * w', D]`` in the type of ``positions``.

    Raises:
      UserError: ``positions`` does not hold ``old_grid``.
    """
    table = np.asarray(positions)
    count, features = table.shape[1:]
    if count != num_prefix + old_grid[0] * old_grid[1]:
        raise UserError(
            f"{count} position embeddings are not {num_prefix} and a grid of {old_grid[0]}x{old_grid[1]}; "
            "check the image and patch size of the checkpoint."
        )
    grid = table[0, num_prefix:].astype(np.float64).reshape(*old_grid, features)
    rows, columns = (resize_matrix(o, n, method) for o, n in zip(old_grid, new_grid, strict=True))
    grid = np.einsum("ih,jw,hwd->ijd", rows, columns, grid, optimize=True)
    return np.concatenate([table[:, :num_prefix], grid.reshape(1, -1, features).astype(table.dtype)], axis=1)


def along_both(rows: np.ndarray, columns: np.ndarray, x: jax.Array) -> jax.Array:
    """``rows [H', H]`` and ``columns [W', W]`` applied to ``x [H, W, ...]``, in its type and differentiably."""
    y = jnp.tensordot(jnp.asarray(rows, x.dtype), x, 1, precision=jax.lax.Precision.HIGHEST)
    y = jnp.tensordot(jnp.asarray(columns, x.dtype), y, ((1,), (1,)), precision=jax.lax.Precision.HIGHEST)
    return jnp.swapaxes(y, 0, 1)


def _inverse(old: int, new: int, method: str) -> np.ndarray:
    """``pinv(B^T)`` float64 ``[new, old]``, of a row of pixels."""
    return np.linalg.pinv(resize_matrix(old, new, method).T)


def resize_patches(kernel: Array, new_patch: int, method: str = "bilinear") -> np.ndarray:
    """A patch embedding for patches of another size, computed on the host in float64.

    The kernel ``w' = pinv(B^T) w`` of FlexiViT (Beyer et al. 2023, arXiv:2212.08013, section 3.4), where ``B`` resizes
    patches. A resized patch times ``w'`` is the patch times ``w``: exactly for larger patches, for smaller ones as
    nearly as it can be over all patches. ``B`` works on rows, then on columns, and so does its pseudo-inverse.

    Args:
      kernel: ``[P, P, C, D]``.
      new_patch: P'.
      method: a name in :data:`RESIZES`.

    Returns:
      ``[P', P', C, D]`` in the type of ``kernel``; the kernel itself where P' is P.
    """
    w = np.asarray(kernel)
    if w.shape[0] == new_patch:
        return w
    inverse = _inverse(w.shape[0], new_patch, method)
    return np.einsum("ih,jw,hwcd->ijcd", inverse, inverse, w.astype(np.float64), optimize=True).astype(w.dtype)
