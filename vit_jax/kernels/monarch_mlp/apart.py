"""The perceptron as two Monarch products."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax import sharding
from vit_jax.kernels.monarch import monarch
from vit_jax.kernels.monarch_mlp.factors import Factors
from vit_jax.kernels.products import differentiable


def _slope(activation: Callable[[jax.Array], jax.Array], x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    wide = jax.lax.optimization_barrier(x).astype(jnp.float32)  # else XLA keeps what the forward computed of it
    return (jax.vjp(activation, wide)[1](g.astype(jnp.float32))[0].astype(x.dtype),)


@differentiable(_slope, static=1)
def _active(activation: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return activation(x.astype(jnp.float32)).astype(x.dtype)


def run(x: jax.Array, first: Factors, second: Factors, activation: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """See ``vit_jax.kernels.monarch_mlp``."""
    h = monarch(x, *first, blocked=True)
    h = _active(activation, sharding.constrain(h, "batch", *[None] * (h.ndim - 2), "mlp"))
    return monarch(h, *second, input_parts=first.kernel_2.shape[0])
