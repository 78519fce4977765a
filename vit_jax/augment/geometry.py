"""Crops and resizes as ONE primitive: a box of the canvas resampled to the output size.

:func:`resample` is separable: two small matrices per image, built from the box, so that it is matrix products on every
backend and never a gather. Filters, support and pixel-centre convention are those of ``PIL.Image.resize(box=...)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from vit_jax.augment.base import ImageOp, check_ordered, unit
from vit_jax.checks import Checked, Range, Share
from vit_jax.types import PRNGKey, UserError

Interpolation = Literal["bilinear", "bicubic"]
Crop = Annotated[float, Range(0.01, 1, hint=", the fraction of the short side that is kept")]
Ratio = Annotated[float, Range(0.01, 100)]
"""Of one side to another."""
Box = tuple[float, float, float, float] | jax.Array
"""Top, left, bottom, right: a tuple is static (known when tracing), an array is random."""


def _hat(x: jax.Array) -> jax.Array:
    return jnp.maximum(1 - x, 0)


def _cubic(x: jax.Array) -> jax.Array:
    """Keys 1981 with a = -0.5."""
    inner, outer = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, inner, jnp.where(x < 2, outer, 0))


KERNELS: dict[str, Callable[[jax.Array], jax.Array]] = {"bilinear": _hat, "bicubic": _cubic}


def resize_matrix(
    start: jax.Array | float, stop: jax.Array | float, n_in: int, n_out: int, interpolation: Interpolation
) -> jax.Array:
    """float32[n_out, n_in] that resamples ``[start, stop)`` of a line; the filter widens when the line shrinks.

    Filter taps may leave the interval but not the line, and are renormalised there, as in PIL.
    """
    scale = (stop - start) / n_out
    centres = start + (jnp.arange(n_out, dtype=jnp.float32) + 0.5) * scale
    pixels = jnp.arange(n_in, dtype=jnp.float32) + 0.5
    distance = jnp.abs(pixels[None, :] - centres[:, None]) / jnp.maximum(scale, 1.0)
    weights = KERNELS[interpolation](distance)
    return weights / weights.sum(axis=1, keepdims=True)


def resample(
    image: jax.Array, box: Box, size: int | tuple[int, int], interpolation: Interpolation = "bilinear"
) -> jax.Array:
    """The ``box`` of ``image``, antialiased, as an image of ``size`` pixels.

    Args:
      image: uint8[H,W,C], or float32[H,W,C] in [0, 1].
      box: top, left, bottom, right in pixels of ``image``; a static box that needs no resampling is a slice.
      size: output side, or (height, width).
      interpolation: ``"bilinear"`` or ``"bicubic"`` (a = -0.5; clipped to [0, 1], as PIL clips to uint8).

    Returns:
      float32[h,w,C] in [0, 1].
    """
    h, w = (size, size) if isinstance(size, int) else size
    rows, columns, channels = image.shape
    if isinstance(box, tuple):
        top, left, bottom, right = box
        if (bottom - top, right - left) == (h, w) and top == int(top) and left == int(left):
            return unit(image[int(top) : int(bottom), int(left) : int(right)])
    # [H,C,W]: both products are then plain matrices, and the two transpositions fuse with their neighbours.
    x = unit(image).swapaxes(1, 2).reshape(rows, channels * columns)
    vertical = resize_matrix(box[0], box[2], rows, h, interpolation)
    horizontal = resize_matrix(box[1], box[3], columns, w, interpolation)
    x = jnp.dot(vertical, x, precision="highest").reshape(h * channels, columns)
    x = jnp.dot(x, horizontal.T, precision="highest").reshape(h, channels, w).swapaxes(1, 2)
    return jnp.clip(x, 0, 1) if interpolation == "bicubic" else x


@dataclasses.dataclass(frozen=True)
class CropResize(Checked):
    """First operation of a policy: turns the square canvas into the output square.

    In training the canvas is the whole image, squashed; ``original``, the image's (height, width), undoes that.
    """

    def box(self, key: PRNGKey, original: jax.Array) -> Box:
        """Top, left, bottom, right as fractions of the canvas."""
        raise NotImplementedError

    def __call__(
        self, key: PRNGKey, image: jax.Array, original: jax.Array, size: int, interpolation: Interpolation = "bilinear"
    ) -> jax.Array:
        """uint8[S,S,3] or float32 in [0, 1] -> float32[size,size,3] in [0, 1]."""
        box, side = self.box(key, original), image.shape[0]
        box = (side * box[0], side * box[1], side * box[2], side * box[3]) if isinstance(box, tuple) else side * box
        return resample(image, box, size, interpolation)


@dataclasses.dataclass(frozen=True)
class InceptionCrop(CropResize):
    """Random area and aspect ratio of the original image (Szegedy et al. 2015, section 6), resized to the output.

    The area is uniform in ``scale`` (fractions of the image), the ratio width/height log-uniform in ``ratio``; the
    first of ten draws that fits is placed uniformly, else the largest centred box with an allowed ratio is taken.

    Attributes:
      scale: smallest and largest area of the crop, as fractions of the image.
      ratio: smallest and largest width / height of the crop.
    """

    scale: tuple[Share, Share] = (0.08, 1.0)
    ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ordered(self, "scale", "ratio")

    def box(self, key: PRNGKey, original: jax.Array) -> Box:
        area, log_ratio = (draws := jax.random.uniform(key, (2, 11)))[:, :10]
        aspect = original[1].astype(jnp.float32) / original[0].astype(jnp.float32)
        area = self.scale[0] + area * (self.scale[1] - self.scale[0])
        low, high = jnp.log(jnp.float32(self.ratio[0])), jnp.log(jnp.float32(self.ratio[1]))
        relative = jnp.exp(low + log_ratio * (high - low)) / aspect  # width/height in units of the canvas
        sides = jnp.stack([jnp.sqrt(area / relative), jnp.sqrt(area * relative)])
        fits = (sides <= 1).all(axis=0)
        first = jnp.arange(10) == jnp.argmax(fits)
        ratio = jnp.clip(aspect, *self.ratio) / aspect
        fallback = jnp.stack([jnp.minimum(1 / ratio, 1), jnp.minimum(ratio, 1)])
        sides = jnp.where(fits.any(), jnp.where(first, sides, 0).sum(axis=1), fallback)
        place = jnp.where(fits.any(), draws[:, 10], 0.5)
        start = place * (1 - sides)
        return jnp.concatenate([start, start + sides])


@dataclasses.dataclass(frozen=True)
class Resize(CropResize):
    """The whole image, squashed to the output square."""

    def box(self, key: PRNGKey, original: jax.Array) -> Box:
        return (0.0, 0.0, 1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class CenterCrop(CropResize):
    """The centre square of the original image, its side ``crop`` times the short side.

    Attributes:
      crop: side of the square, as a fraction of the image's short side.
    """

    crop: Crop = 1.0

    def box(self, key: PRNGKey, original: jax.Array) -> Box:
        extent = original.astype(jnp.float32)
        sides = self.crop * extent.min() / extent
        return jnp.concatenate([(1 - sides) / 2, (1 + sides) / 2])


@dataclasses.dataclass(frozen=True)
class RandomCrop(CropResize):
    """Pads the canvas by ``padding`` pixels on every side and cuts a random window of the output size, unscaled.

    Attributes:
      padding: pixels added on every side before the window is cut.
      mode: what the padding shows: the image mirrored ("reflect"), its border ("edge"), or black ("zero").
    """

    padding: Annotated[int, Range(0, 4096)] = 4
    mode: Literal["reflect", "edge", "zero"] = "reflect"

    def __call__(
        self, key: PRNGKey, image: jax.Array, original: jax.Array, size: int, interpolation: Interpolation = "bilinear"
    ) -> jax.Array:
        side = image.shape[0] + 2 * self.padding
        if side < size or (self.mode == "reflect" and self.padding >= image.shape[0]):
            raise UserError(
                f"RandomCrop: a canvas of {image.shape[0]} px with padding={self.padding} gives no {self.mode!r} window"
                f" of {size} px; raise data.canvas or take inception_crop."
            )
        mode = {"zero": "constant"}.get(self.mode, self.mode)
        padded = jnp.pad(image, ((self.padding,) * 2, (self.padding,) * 2, (0, 0)), mode=mode)
        top, left = jnp.floor(jax.random.uniform(key, (2,)) * (side - size + 1)).astype(jnp.int32)
        return unit(jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), (size, size, image.shape[2])))


@dataclasses.dataclass(frozen=True)
class Flip(ImageOp):
    """Mirrors left and right with probability ``prob``.

    Attributes:
      prob: probability of mirroring.
    """

    prob: Share = 0.5

    def __call__(self, key: PRNGKey, image: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, self.prob), image[:, ::-1], image)


def center_box(side: int, crop: float) -> Box:
    """Static centre square of a canvas; its edges are whole pixels where they fall within 1e-3 of one."""
    inner = crop * side
    inner = float(round(inner)) if abs(inner - round(inner)) < 1e-3 else inner
    start = (side - inner) / 2
    return (start, start, start + inner, start + inner)
