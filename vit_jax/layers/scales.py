"""Features of an image at several sizes (S2, Shi et al. 2024, arXiv:2403.13043), without another parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.checks import shown
from vit_jax.layers.embed import along_both, resize_matrix
from vit_jax.types import UserError

RESIZE = "bicubic_plain"
"""How images are resized, a name in :data:`vit_jax.layers.embed.RESIZES`: the authors' ``F.interpolate``."""


def counts(scales: tuple[float, ...]) -> tuple[int, ...]:
    """How many tiles lie along the side of the image at each scale.

    Raises:
      UserError: a scale is no multiple of the first.
    """
    found = tuple(round(scale / scales[0]) for scale in scales) if scales else ()
    if not found or any(not k or abs(k * scales[0] - scale) > 1e-6 for k, scale in zip(found, scales, strict=True)):
        raise UserError(f"scales={shown(scales)} are not whole multiples of the first; give (1, 2) for example.")
    return found


def tiles(image: jax.Array, scales: tuple[float, ...]) -> jax.Array:
    """``[B, S, S, C] -> [sum k_i^2 * B, T, T, C]``: the image at each scale, cut into tiles of T = ``scales[0] * S``.

    Scale by scale, and of each the tiles row by row, and of each the whole batch.

    Raises:
      UserError: the image is not square, or T is no whole number.
    """
    height, width = image.shape[1:3]
    numbers = counts(scales)
    side = round(scales[0] * height)
    if height != width or abs(side - scales[0] * height) > 1e-6:
        raise UserError(f"scales={shown(scales)} take square images whose side they divide, not {height}x{width}.")
    parts = []
    for k in numbers:
        matrix = resize_matrix(height, k * side, RESIZE)
        x = image if k * side == height else jax.vmap(lambda one, m=matrix: along_both(m, m, one))(image)
        parts.append(split(x, k))
    return jnp.concatenate(parts)


def split(x: jax.Array, k: int) -> jax.Array:
    """``[B, H, W, C] -> [k * k * B, H / k, W / k, C]``, tiles row by row and of each the whole batch."""
    b, h, w, c = x.shape
    x = x.reshape(b, k, h // k, k, w // k, c)
    return x.transpose(1, 3, 0, 2, 4, 5).reshape(k * k * b, h // k, w // k, c)


def merge(x: jax.Array, k: int) -> jax.Array:
    """The inverse of :func:`split`."""
    n, h, w, c = x.shape
    x = x.reshape(k, k, n // k**2, h, w, c)
    return x.transpose(2, 0, 3, 1, 4, 5).reshape(n // k**2, k * h, k * w, c)


def pooled(x: jax.Array, k: int) -> jax.Array:
    """Means of ``k`` by ``k`` neighbours, in float32: ``[B, k * h, k * w, C] -> [B, h, w, C]``."""
    b, h, w, c = x.shape
    return jnp.mean(x.reshape(b, h // k, k, w // k, k, c).astype(jnp.float32), axis=(2, 4)).astype(x.dtype)


def features(encode: Callable[[jax.Array], Any], image: jax.Array, scales: tuple[float, ...], prefix: int) -> Any:
    """What ``encode`` finds at each scale, beside each other in the channels: ``tokens``, ``pooled``, ``size``.

    Tiles go through it together. The grids of a scale's tiles are put together and averaged to the grid of the first
    scale; tokens before the grid, and pooled features, are averaged over the tiles.

    Args:
      encode: images to features.
      image: float32 ``[B, S, S, 3]``.
      scales: multiples of the first; the image's own size is 1.
      prefix: how many tokens come before those of the grid.

    Raises:
      UserError: as :func:`tiles` does; the tokens are no grid, as some were merged.
    """
    if scales == (1,):
        return encode(image)
    batch = image.shape[0]
    found = encode(tiles(image, scales))
    count = found.tokens.shape[1] - prefix
    side = round(count**0.5)
    if found.size is not None or side**2 != count:
        raise UserError(
            f"scales={shown(scales)} put grids of tokens together, and reduce leaves none; set reduce=None."
        )
    grids, befores, wholes, first = [], [], [], 0
    for k in counts(scales):
        rows = slice(first, first + k * k * batch)
        first = rows.stop
        tokens = found.tokens[rows]
        grid = pooled(merge(tokens[:, prefix:].reshape(-1, side, side, tokens.shape[2]), k), k)
        grids.append(grid.reshape(batch, count, -1))
        befores.append(_mean(tokens[:, :prefix], batch))
        wholes.append(_mean(found.pooled[rows], batch))
    tokens = jnp.concatenate([jnp.concatenate(befores, axis=-1), jnp.concatenate(grids, axis=-1)], axis=1)
    return found._replace(tokens=tokens, pooled=jnp.concatenate(wholes, axis=-1))


def _mean(x: jax.Array, batch: int) -> jax.Array:
    """Over tiles: ``[n * B, ...] -> [B, ...]``."""
    return jnp.mean(x.reshape(len(x) // batch, batch, *x.shape[1:]).astype(jnp.float32), axis=0).astype(x.dtype)
