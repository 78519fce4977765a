"""The Monarch product as one dense product with the weight multiplied out."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax.kernels.monarch.layout import Sizes, blocked_bias, first
from vit_jax.kernels.products import matmul


def weight(sizes: Sizes, kernel_1: jax.Array, kernel_2: jax.Array, blocked: bool) -> jax.Array:
    """The dense ``[in, out]``, float32: rows in the order of the input's parts, columns natural or blocked.

    Exact on every platform: ``T`` terms per element cost next to nothing.
    """
    K, _, T, L, S, _ = sizes
    u = first(sizes, kernel_1.astype(jnp.float32))
    v = jnp.reshape(kernel_2.astype(jnp.float32), (L, S, K, T))
    dims = "kltja,lskt->jkals" if blocked else "kltja,lskt->jkasl"
    return jnp.reshape(jnp.einsum(dims, u, v, precision="highest"), (sizes.inputs, sizes.outputs))


def run(
    x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, *, input_parts: int, blocked: bool
) -> jax.Array:
    """The product of ``x [..., n]``; see ``vit_jax.kernels.monarch``."""
    sizes = Sizes.of(x.shape[-1], kernel_1, kernel_2, bias, input_parts)
    b = blocked_bias(sizes, bias) if blocked and bias is not None else bias
    return matmul(x, weight(sizes, kernel_1, kernel_2, blocked), b)
