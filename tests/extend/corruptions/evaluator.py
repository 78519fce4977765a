"""Accuracy on corrupted images beside that on clean ones (Hendrycks and Dietterich 2019, arXiv:1903.12261)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from vit_jax.evals import Classify, Evaluator, combine
from vit_jax.evals.base import prefixed


def noise(images: jax.Array) -> jax.Array:
    """Gaussian noise of a standard deviation of 80 grey levels, the same for every batch."""
    drawn = 80 * jax.random.normal(jax.random.key(0), images.shape)
    return jnp.clip(images.astype(jnp.float32) + drawn, 0, 255).astype(jnp.uint8)


def dark(images: jax.Array) -> jax.Array:
    """A tenth of the brightness."""
    return images // 10


CORRUPTIONS = {"noise": noise, "dark": dark}


@dataclasses.dataclass(frozen=True)
class Corrupted(Evaluator):
    """The metrics of :class:`Classify` under each corruption, and of clean images."""

    metrics: ClassVar[tuple[str, ...]] = (
        *Classify.metrics,
        *(f"{k}/{m}" for k in CORRUPTIONS for m in Classify.metrics),
    )

    def __call__(self, context):
        changed = {k: dataclasses.replace(context, transform=f) for k, f in CORRUPTIONS.items()}
        return combine([Classify()(context), *(prefixed(Classify()(c), k) for k, c in changed.items())])
