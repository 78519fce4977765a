"""The perceptron as two Monarch products."""

from __future__ import annotations

from collections.abc import Callable

import jax

from vit_jax import sharding
from vit_jax.kernels.monarch import monarch
from vit_jax.kernels.monarch_mlp.factors import Factors


def run(x: jax.Array, first: Factors, second: Factors, activation: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """See ``vit_jax.kernels.monarch_mlp``."""
    h = monarch(x, *first, blocked=True)
    h = activation(sharding.constrain(h, "batch", *[None] * (h.ndim - 2), "mlp"))
    return monarch(h, *second, input_parts=first.kernel_2.shape[0])
