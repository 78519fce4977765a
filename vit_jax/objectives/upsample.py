"""Features of a larger image, from a smaller one (LiFT, Suri et al. 2024, arXiv:2403.14625, section 3.2).

With f the frozen tower's features, x an image and x', x'' every second and every fourth of its pixels,

    d(lift(f(x'), x'), f(x)) + d(lift(f(x''), x''), f(x')),

d being a mean over the places of a grid: there are no labels, and no features but the tower's.

Not as in the authors' code: features are the tower's tokens after its last norm, not the keys of its last layer, and no
convolution that a batch norm follows has a bias.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.layers.norm import unit
from vit_jax.models import Upsampler
from vit_jax.objectives.base import Apply, Metrics, PerExample, Rngs
from vit_jax.types import Batch, Params, UserError

Distance = Literal["cosine", "l1", "l2"]


@dataclasses.dataclass(frozen=True)
class Upsample(PerExample):
    """The distance of doubled features to those of twice the image, summed over two sizes.

    Attributes:
      distance: "cosine", one less the cosine of channels; "l1" or "l2", the mean over channels of differences or of
        their squares.
    """

    distance: Distance = "cosine"

    def fit_model(self, model: nn.Module, info: Any) -> nn.Module:
        """As it is.

        Raises:
          UserError: it doubles no features.
        """
        if not isinstance(model, Upsampler):
            raise UserError(
                f"objective='upsample' trains what doubles features, and {type(model).__name__} does not; set "
                "model.name='lift' and model.image_tower to the tower."
            )
        return model

    def per_example(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Metrics]:
        made = apply(params, batch["image"], train=train, rngs=rngs, method="doubled")
        return sum((self._between(*pair) for pair in zip(made.found, made.wanted, strict=True)), jnp.zeros(())), {}

    def _between(self, found: jax.Array, wanted: jax.Array) -> jax.Array:
        """``[B, h, w, D]`` twice -> float32 ``[B]``."""
        if self.distance == "cosine":
            return 1 - cosines(found, wanted)
        off = found.astype(jnp.float32) - wanted.astype(jnp.float32)
        return jnp.mean(jnp.abs(off) if self.distance == "l1" else jnp.square(off), axis=(1, 2, 3))


def cosines(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean over places of the cosines of ``a`` and ``b`` ``[B, h, w, D]``, float32 ``[B]``."""
    return jnp.mean(jnp.sum(unit(a.astype(jnp.float32)) * unit(b.astype(jnp.float32)), axis=-1), axis=(1, 2))
