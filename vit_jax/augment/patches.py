"""Images in their own shape as a batch of patches (NaFlex, Tschannen et al. 2025, arXiv:2502.14786, section 2.4.2)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.augment.geometry import Box, Interpolation, resample
from vit_jax.types import Patches


def cut(canvases: jax.Array, size: jax.Array, patch: int, most: int) -> Patches:
    """Patches that lie on canvases one after the other, as the host lays them.

    Args:
      canvases: ``[B, K, K, 3]``.
      size: int32 ``[B, 2]``, height and width in pixels of what was cut.
      patch: side P of a patch.
      most: number N of patches, at most (K / P)^2.
    """
    b, side = canvases.shape[0], canvases.shape[1] // patch
    x = canvases[:, : side * patch, : side * patch].reshape(b, side, patch, side, patch, 3).swapaxes(2, 3)
    return Patches(x.reshape(b, side * side, -1)[:, :most], *places(size // patch, most))


def resampled(
    image: jax.Array, box: Box, original: jax.Array, patch: int, most: int, interpolation: Interpolation
) -> Patches:
    """The ``box`` of an image, in its own shape as far as whole patches allow: each is a box of its own, resampled.

    Args:
      image: the whole of it, squashed: uint8[S,S,3], or float32 in [0, 1].
      box: top, left, bottom, right as fractions.
      original: int32[2], the image's own height and width.
      patch: side P of a patch.
      most: number N of patches.
      interpolation: as of :func:`.geometry.resample`.

    Returns:
      One image's, without the axis B; pixels float32 in [0, 1].
    """
    start, stop = jnp.asarray(box, jnp.float32).reshape(2, 2)
    grid = fit((stop - start) * original.astype(jnp.float32), most)
    at, real = (x[0] for x in places(grid[None], most))
    start, step, place = start[None], ((stop - start) / grid.astype(jnp.float32))[None], at.astype(jnp.float32)
    corners = image.shape[0] * jnp.concatenate([start + place * step, start + (place + 1) * step], axis=1)
    pixels = jax.vmap(lambda corner: resample(image, corner, patch, interpolation))(corners)
    return Patches(pixels.reshape(most, -1), at, real)


def fit(extent: jax.Array, most: int) -> jax.Array:
    """Rows and columns int32[2] of the largest grid of at most ``most`` patches for an image of this height and width.

    The scale is the largest by which both sides, rounded up to whole patches, give no more than ``most``; where ``r``
    rows decide it is ``min(r / height, (most // r) / width)``. The host's rule to its tolerance, but for the limit of
    its scale.
    """
    rows = np.arange(1, most + 1)
    scales = (jnp.asarray(x, jnp.float32) / side for x, side in zip((rows, most // rows), extent, strict=True))
    scale = jnp.max(jnp.minimum(*scales))
    return jnp.maximum(jnp.ceil(extent * scale - 1e-4), 1).astype(jnp.int32)


def places(grid: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """Of grids int32[B,2] the row and column of each patch, int32[B,most,2], and which there are, bool[B,most]."""
    k = jnp.arange(most)[None]
    real = k < jnp.prod(grid, axis=1, keepdims=True)
    at = jnp.stack(jnp.divmod(k, jnp.maximum(grid[:, 1:], 1)), axis=-1)
    return jnp.where(real[..., None], at, 0), real


def pictures(images: Any) -> np.ndarray:
    """Images ``[B, S, S, 3]``; those in their own shape on black squares."""
    if not isinstance(images, Patches):
        return np.asarray(images)
    pixels, at, real = map(np.asarray, images)
    side, patch = int(at.max()) + 1, math.isqrt(pixels.shape[-1] // 3)
    out = np.zeros((len(at), side, side, patch, patch, 3), pixels.dtype)
    b, n = np.nonzero(real)
    out[b, at[b, n, 0], at[b, n, 1]] = pixels[b, n].reshape(-1, patch, patch, 3)
    return out.swapaxes(2, 3).reshape(len(at), side * patch, side * patch, 3)
