"""Photometric operations on one image float32[H,W,3] in [0, 1]; a factor of 1 changes nothing, as in PIL."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from vit_jax.augment.base import ImageOp, check_ordered, inside, luma
from vit_jax.checks import Range, Share
from vit_jax.types import PRNGKey

Scalar = jax.Array | float
Factor = Annotated[float, Range(0, 10)]
"""Largest distance of a factor from 1."""


def blend(image: jax.Array, other: jax.Array | float, factor: Scalar) -> jax.Array:
    """Extrapolates from ``other`` (factor 0) through ``image`` (factor 1), clipped to [0, 1]; exact at factor 1."""
    return jnp.clip(image + (factor - 1) * (image - other), 0, 1)


def brightness(image: jax.Array, factor: Scalar) -> jax.Array:
    """Blend with black."""
    return blend(image, 0.0, factor)


def mean_luma(image: jax.Array) -> jax.Array:
    """The mean luma as an image of one grey."""
    return jnp.broadcast_to(luma(image).mean(), image.shape)


def contrast(image: jax.Array, factor: Scalar) -> jax.Array:
    """Blend with the mean grey of the image."""
    return blend(image, mean_luma(image), factor)


def grey(image: jax.Array) -> jax.Array:
    """Luma in all three channels."""
    return jnp.broadcast_to(luma(image), image.shape)


def saturation(image: jax.Array, factor: Scalar) -> jax.Array:
    """Blend with the grey image (PIL's ``Color``)."""
    return blend(image, grey(image), factor)


def smooth(image: jax.Array) -> jax.Array:
    """3x3 mean with a centre weight of 5 (PIL's ``SMOOTH``); border pixels stay."""
    rows = image[:-2] + image[1:-1] + image[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return jnp.asarray(image).at[1:-1, 1:-1].set((box + 4 * image[1:-1, 1:-1]) / 13)


def sharpness(image: jax.Array, factor: Scalar) -> jax.Array:
    """Blend with the smoothed image."""
    return blend(image, smooth(image), factor)


def hue(image: jax.Array, turn: Scalar) -> jax.Array:
    """Rotates the hue in HSV by ``turn`` turns (1 is the full circle); value and chroma stay."""
    high, low = image.max(axis=-1, keepdims=True), image.min(axis=-1, keepdims=True)
    chroma = high - low
    r, g, b = (image[..., i : i + 1] for i in range(3))
    step = 1 / jnp.where(chroma == 0, 1, chroma)
    sextant = jnp.where(high == r, (g - b) * step, jnp.where(high == g, 2 + (b - r) * step, 4 + (r - g) * step))
    k = (jnp.array([5.0, 3.0, 1.0])[None, None, :] + sextant + 6 * turn) % 6
    return high - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


@dataclasses.dataclass(frozen=True)
class ColorJitter(ImageOp):
    """Random brightness, contrast, saturation and hue, always in this order, with probability ``prob``.

    Factors are uniform in ``[max(0, 1 - x), 1 + x]``, the hue turns by a uniform ``[-hue, hue]``; 0 leaves a property
    out. Under vmap a random order would cost each operation once per place, and it changes the distribution little.

    Attributes:
      brightness: largest distance of the brightness factor from 1.
      contrast: largest distance of the contrast factor from 1.
      saturation: largest distance of the saturation factor from 1.
      hue: largest turn of the hue, in full circles; at most 0.5.
      prob: probability that the image is changed at all.
    """

    brightness: Factor = 0.4
    contrast: Factor = 0.4
    saturation: Factor = 0.4
    hue: Annotated[float, Range(0, 0.5)] = 0.0
    prob: Share = 1.0

    def __call__(self, key: PRNGKey, image: jax.Array) -> jax.Array:
        draws = jax.random.uniform(key, (5,))
        out = image
        for i, (op, x) in enumerate(
            ((brightness, self.brightness), (contrast, self.contrast), (saturation, self.saturation))
        ):
            if x:
                low = max(0.0, 1 - x)
                out = op(out, low + draws[i] * (1 + x - low))
        if self.hue:
            out = hue(out, self.hue * (2 * draws[3] - 1))
        return out if self.prob == 1 else jnp.where(draws[4] < self.prob, out, image)


@dataclasses.dataclass(frozen=True)
class RandomErasing(ImageOp):
    """Overwrites one random rectangle with probability ``prob`` (Zhong et al. 2017).

    The area is uniform in ``area`` (fractions of the image), the ratio height/width log-uniform between ``ratio`` and
    its inverse; sides are rounded to pixels and limited to the image.

    Attributes:
      prob: probability that a rectangle is overwritten.
      area: smallest and largest area of the rectangle, as fractions of the image.
      ratio: smallest height / width of the rectangle; its inverse is the largest.
      mode: ``"pixel"`` fills with uniform noise in [0, 1] (the paper's best), ``"const"`` with ``fill``.
      fill: value in [0, 1] that ``mode="const"`` writes.
    """

    prob: Share = 0.25
    area: tuple[Share, Share] = (0.02, 1 / 3)
    ratio: Annotated[float, Range(0.01, 1)] = 0.3
    mode: Literal["pixel", "const"] = "pixel"
    fill: Share = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ordered(self, "area")

    def __call__(self, key: PRNGKey, image: jax.Array) -> jax.Array:
        draw_key, noise_key = jax.random.split(key)
        h, w, _ = image.shape
        use, size, ratio, *place = jax.random.uniform(draw_key, (5,))
        area = (self.area[0] + size * (self.area[1] - self.area[0])) * h * w
        ratio = jnp.exp((2 * ratio - 1) * math.log(self.ratio))
        sides = [jnp.clip(jnp.round(jnp.sqrt(area * r)), 1, n) for r, n in ((ratio, h), (1 / ratio, w))]
        start = [jnp.floor(p * (n + 1 - s)) for p, n, s in zip(place, (h, w), sides, strict=True)]
        hit = inside(h, w, start, [a + s for a, s in zip(start, sides, strict=True)]) & (use < self.prob)
        value = jax.random.uniform(noise_key, image.shape) if self.mode == "pixel" else self.fill
        return jnp.where(hit, value, image)
