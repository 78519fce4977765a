"""The block-diagonal product as one dense product, zeros beside the blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax.kernels.products import matmul


def weight(kernel: jax.Array) -> jax.Array:
    """``[n, in, out] -> [n * in, n * out]`` in the type of ``kernel``."""
    n, size, features = kernel.shape
    own = jnp.reshape(jnp.eye(n, dtype=bool), (n, 1, n, 1))
    spread = jnp.where(own, kernel[:, :, None], jnp.zeros((), kernel.dtype))
    return jnp.reshape(spread, (n * size, n * features))


def run(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """The product of ``x [..., n * in]``; see ``vit_jax.kernels.block_diagonal``."""
    return matmul(x, weight(kernel), bias)
