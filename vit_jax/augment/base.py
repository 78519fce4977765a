"""What every augmentation shares: the kinds of operation, the pixel range and the checks of their fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vit_jax.checks import Checked, Share
from vit_jax.types import PRNGKey, UserError


@dataclasses.dataclass(frozen=True)
class ImageOp(Checked):
    """Random change of one image that keeps its shape: ``op(key, float32[H,W,3] in [0, 1])`` -> the same."""

    def __call__(self, key: PRNGKey, image: jax.Array) -> jax.Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class MixOp(Checked):
    """Random blend of a batch with itself: ``op(key, images, labels, mask)`` -> ``(images, soft labels)``."""

    prob: Share = 1.0

    def __call__(
        self, key: PRNGKey, images: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        raise NotImplementedError


def unit(image: jax.Array) -> jax.Array:
    """uint8 in [0, 255] -> float32 in [0, 1]; float images, already in [0, 1], are returned as they are."""
    return image.astype(jnp.float32) * (1 / 255) if image.dtype == jnp.uint8 else image


def luma(image: jax.Array) -> jax.Array:
    """ITU-R 601 luma float32[H,W,1] of an RGB image, the weights of PIL's mode ``L``."""
    r, g, b = (image[..., i : i + 1] for i in range(3))
    return 0.299 * r + 0.587 * g + 0.114 * b


def inside(h: int, w: int, start: Sequence[jax.Array], stop: Sequence[jax.Array]) -> jax.Array:
    """bool[h,w,1]: pixels (y, x) with ``start <= (y, x) < stop``."""
    y, x = jnp.arange(h, dtype=jnp.float32)[:, None, None], jnp.arange(w, dtype=jnp.float32)[None, :, None]
    return (y >= start[0]) & (y < stop[0]) & (x >= start[1]) & (x < stop[1])


def check_ordered(op: object, *names: str) -> None:
    """Raises :class:`UserError` where a field is no range ``0 < low <= high``."""
    for name in names:
        low, high = getattr(op, name)
        if not 0 < low <= high:
            raise UserError(f"{type(op).__name__}: {name}=({low:g}, {high:g}) is no range; write 0 < low <= high.")
