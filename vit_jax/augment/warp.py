"""Rotation, shear, scale and shift of one image by bilinear sampling."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp

from vit_jax.augment.base import ImageOp, check_ordered
from vit_jax.checks import Range, Share
from vit_jax.types import PRNGKey

Scalar = jax.Array | float


def warp(image: jax.Array, matrix: jax.Array, shift: jax.Array, fill: float = 0.0) -> jax.Array:
    """Bilinear samples of ``image`` at ``matrix @ p + shift`` for every output pixel p.

    Coordinates are (y, x) from the image centre in pixels. The image ends half a pixel beyond its outer pixel centres,
    which are repeated there; further out is ``fill``: the convention of ``PIL.Image.transform(AFFINE, BILINEAR)``.

    Args:
      image: float32[H,W,C].
      matrix: float32[2,2], output to input.
      shift: float32[2].
      fill: value outside.

    Returns:
      float32[H,W,C].
    """
    h, w, c = image.shape
    y = jnp.arange(h, dtype=jnp.float32)[:, None] - (h - 1) / 2
    x = jnp.arange(w, dtype=jnp.float32)[None, :] - (w - 1) / 2
    source_y = matrix[0, 0] * y + matrix[0, 1] * x + (shift[0] + (h - 1) / 2)
    source_x = matrix[1, 0] * y + matrix[1, 1] * x + (shift[1] + (w - 1) / 2)
    inside = (source_y >= -0.5) & (source_y < h - 0.5) & (source_x >= -0.5) & (source_x < w - 0.5)
    source_y, source_x = jnp.clip(source_y, 0, h - 1), jnp.clip(source_x, 0, w - 1)
    top, left = jnp.floor(source_y), jnp.floor(source_x)
    dy, dx = (source_y - top)[..., None], (source_x - left)[..., None]
    # The four neighbours side by side: one gather of 4C contiguous values instead of four.
    padded = jnp.pad(image, ((0, 1), (0, 1), (0, 0)), mode="edge")
    corners = jnp.concatenate([padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]], axis=-1)
    index = (top * w + left).astype(jnp.int32)
    nw, ne, sw, se = jnp.split(corners.reshape(h * w, 4 * c)[index], 4, axis=-1)
    north, south = nw + dx * (ne - nw), sw + dx * (se - sw)
    return jnp.where(inside[..., None], north + dy * (south - north), fill)


def inverse_matrix(angle: Scalar = 0.0, shear_x: Scalar = 0.0, shear_y: Scalar = 0.0, scale: Scalar = 1.0) -> jax.Array:
    """float32[2,2] over (y, x), output to input, of: shear, then counter-clockwise rotation, then zoom.

    Args:
      angle: radians.
      shear_x: pixels to the right per pixel down.
      shear_y: pixels down per pixel to the right; ``shear_x * shear_y`` must not be 1.
      scale: zoom factor; the image grows when it is above 1.
    """
    angle, shear_x, shear_y, scale = (jnp.float32(v) for v in (angle, shear_x, shear_y, scale))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    unrotate = (cos, sin), (-sin, cos)
    unshear = (jnp.ones_like(angle), -shear_y), (-shear_x, jnp.ones_like(angle))
    factor = 1 / (scale * (1 - shear_x * shear_y))
    return jnp.stack(
        [jnp.stack([sum(unshear[i][k] * unrotate[k][j] for k in (0, 1)) * factor for j in (0, 1)]) for i in (0, 1)]
    )


Zoom = Annotated[float, Range(0.01, 100)]


@dataclasses.dataclass(frozen=True)
class Affine(ImageOp):
    """Small random rotation, shear, zoom and shift about the centre, all uniform.

    Attributes:
      rotate: largest angle, degrees.
      translate: largest shift, as a fraction of the side, drawn for each direction.
      scale: smallest and largest zoom factor.
      shear: largest horizontal shear, pixels per pixel.
      fill: value outside the image, in [0, 1].
    """

    rotate: Annotated[float, Range(0, 180)] = 10.0
    translate: Share = 0.1
    scale: tuple[Zoom, Zoom] = (0.9, 1.1)
    shear: Annotated[float, Range(0, 4)] = 0.0
    fill: Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ordered(self, "scale")

    def __call__(self, key: PRNGKey, image: jax.Array) -> jax.Array:
        angle, shear, zoom, *shift = jax.random.uniform(key, (5,), minval=-1.0)
        low, high = self.scale
        matrix = inverse_matrix(
            angle=math.radians(self.rotate) * angle,
            shear_x=self.shear * shear,
            scale=(low + high) / 2 + zoom * (high - low) / 2,
        )
        extent = jnp.array(image.shape[:2], jnp.float32)
        return warp(image, matrix, self.translate * extent * jnp.stack(shift), self.fill)
