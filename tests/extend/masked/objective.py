"""Mean squared error of the pixels of unseen patches, each patch normalised by its own mean and variance."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from vit_jax.objectives import PerExample


def patches(image, side):
    """``[B, H, W, C]`` -> ``[B, N, side * side * C]``, row by row."""
    b, h, w, c = image.shape
    x = image.reshape(b, h // side, side, w // side, side, c)
    return jnp.swapaxes(x, 2, 3).reshape(b, -1, side * side * c)


@dataclasses.dataclass(frozen=True)
class Masked(PerExample):
    """He et al. 2022, section 3 and table 1d."""

    patch: int
    rng_streams: ClassVar[tuple[str, ...]] = ("dropout", "mask")

    def per_example(self, apply, params, batch, rngs, *, train):
        found, unseen = apply(params, batch["image"], train=train, rngs=rngs, method="reconstruct")
        wanted = patches(batch["image"], self.patch)
        mean, variance = wanted.mean(-1, keepdims=True), wanted.var(-1, keepdims=True)
        error = jnp.square(found - (wanted - mean) / jnp.sqrt(variance + 1e-6)).mean(-1)
        unseen = unseen.astype(error.dtype)
        return (error * unseen).sum(-1) / unseen.sum(-1), {}
