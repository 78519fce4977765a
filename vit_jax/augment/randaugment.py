"""RandAugment (Cubuk et al. 2020) without branches.

Under vmap a switch over 14 operations would run all 14, six of them warps. But each of them is an affine map, a blend
with a second image, or a tone curve. So a layer is one warp, one blend and the curves; the drawn operation sets its own
parameters and the others stay neutral.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp

from vit_jax.augment import color
from vit_jax.augment.base import ImageOp
from vit_jax.augment.warp import inverse_matrix, warp
from vit_jax.checks import Range, Share
from vit_jax.config import lookup
from vit_jax.types import PRNGKey, UserError

NAMES = (
    *("identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y"),
    *("brightness", "contrast", "saturation", "sharpness"),
    *("solarize", "posterize", "autocontrast", "equalize"),
)
_INDEX = {name: i for i, name in enumerate(NAMES)}


def levels(image: jax.Array) -> jax.Array:
    """int32 8-bit levels of an image in [0, 1]."""
    return jnp.round(image * 255).astype(jnp.int32)


def solarize(image: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """Inverts what is at or above ``threshold`` in [0, 1]."""
    return jnp.where(image < threshold, image, 1 - image)


def posterize(image: jax.Array, bits: jax.Array | int) -> jax.Array:
    """Keeps the ``bits`` most significant bits of the 8-bit levels."""
    drop = 8 - jnp.asarray(bits, jnp.int32)
    return ((levels(image) >> drop) << drop).astype(jnp.float32) / 255


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretches each channel to [0, 1]; a constant channel stays."""
    low, high = image.min(axis=(0, 1), keepdims=True), image.max(axis=(0, 1), keepdims=True)
    return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1), image)


def equalize(image: jax.Array) -> jax.Array:
    """Flattens the 8-bit histogram of each channel, by the rule of ``PIL.ImageOps.equalize``."""
    return jax.vmap(_equalize, in_axes=-1, out_axes=-1)(levels(image)).astype(jnp.float32) / 255


def _equalize(level: jax.Array) -> jax.Array:
    """int32[H,W] -> int32[H,W]."""
    count = jnp.zeros(256, jnp.int32).at[level].add(1)
    step = (level.size - count[level.max()]) // 255  # the brightest level is not counted
    table = (step // 2 + jnp.cumsum(count) - count) // jnp.maximum(step, 1)
    return jnp.where(step == 0, level, jnp.minimum(table, 255)[level])


@dataclasses.dataclass(frozen=True)
class RandAugment(ImageOp):
    """``num_ops`` operations after each other, each uniform among ``ops``, all at one ``magnitude`` of 10.

    Ranges at magnitude 10: rotation 30 degrees, shear 0.3, shift 0.45 of the side, factors 1 ± 0.9 (each with a random
    sign), solarize from 1 down to 0, posterize from 8 down to 4 bits. Maps are about the centre; ``fill`` comes in.

    Attributes:
      num_ops: number of operations applied one after the other.
      magnitude: strength of every operation, from 0 (none) to 10.
      ops: names of the operations to draw from.
      fill: value in [0, 1] of pixels that come in from outside of the image.
    """

    num_ops: Annotated[int, Range(1, 16)] = 2
    magnitude: Annotated[float, Range(0, 10)] = 9.0
    ops: tuple[str, ...] = NAMES
    fill: Share = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ops:
            raise UserError(f"RandAugment: ops is empty; choose among {', '.join(NAMES)}.")
        for name in self.ops:
            lookup(_INDEX, name, "RandAugment operation")

    def __call__(self, key: PRNGKey, image: jax.Array) -> jax.Array:
        choices = jnp.array([_INDEX[name] for name in self.ops], jnp.int32)

        def layer(image: jax.Array, draw: jax.Array) -> tuple[jax.Array, None]:
            index = choices[(draw[0] * len(self.ops)).astype(jnp.int32)]
            amount = self.magnitude / 10 * jnp.where(draw[1] < 0.5, 1.0, -1.0)
            return apply(image, index, amount, self.fill), None

        return jax.lax.scan(layer, image, jax.random.uniform(key, (self.num_ops, 2)))[0]


def apply(image: jax.Array, index: jax.Array, amount: jax.Array, fill: float = 0.5) -> jax.Array:
    """Operation ``NAMES[index]`` at the signed strength ``amount`` in [-1, 1] on float32[H,W,3] in [0, 1]."""

    def only(name: str, value: jax.Array | float, neutral: float = 0.0) -> jax.Array:
        return jnp.where(index == _INDEX[name], value, neutral)

    strength = jnp.abs(amount)
    image = jnp.where(index == _INDEX["solarize"], solarize(image, 1 - strength), image)
    image = jnp.where(index == _INDEX["posterize"], posterize(image, 8 - jnp.round(4 * strength)), image)
    image = jnp.where(index == _INDEX["autocontrast"], autocontrast(image), image)
    image = jnp.where(index == _INDEX["equalize"], equalize(image), image)

    others = {"brightness": 0 * image, "contrast": color.mean_luma(image), "saturation": color.grey(image)}
    others["sharpness"] = color.smooth(image)
    other = image
    for name, value in others.items():
        other = jnp.where(index == _INDEX[name], value, other)
    image = color.blend(image, other, 1 + 0.9 * amount)

    matrix = inverse_matrix(
        angle=only("rotate", math.radians(30) * amount),
        shear_x=only("shear_x", 0.3 * amount),
        shear_y=only("shear_y", 0.3 * amount),
    )
    extent = jnp.array(image.shape[:2], jnp.float32)
    shift = jnp.stack([only("translate_y", 0.45 * amount), only("translate_x", 0.45 * amount)]) * extent
    # Last, where the scan stores it: fused into the readers above, its gather would be repeated for each of them.
    return warp(image, matrix, shift, fill)
