"""The block-sparse product as one dense product, with zeros written between the blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax.kernels.products import matmul
from vit_jax.types import Array


def weight(kernel: jax.Array, index: Array, inputs: int) -> jax.Array:
    """``kernel [per, b, out]``, ``index [out_blocks, per]`` -> the weight ``[inputs, out]`` in the kernel's type."""
    per, b, out = kernel.shape
    blocks = jnp.transpose(jnp.reshape(kernel, (per, b, out // b, b)), (2, 0, 1, 3))
    zeros = jnp.zeros((out // b, inputs // b, b, b), kernel.dtype)
    placed = jax.vmap(lambda into, at, block: into.at[at].add(block))(zeros, jnp.asarray(index), blocks)
    return jnp.reshape(jnp.transpose(placed, (1, 2, 0, 3)), (inputs, out))


def run(x: jax.Array, kernel: jax.Array, index: Array, bias: jax.Array | None) -> jax.Array:
    """The product of ``x [rows, in]``; see ``vit_jax.kernels.block_sparse``."""
    return matmul(x, weight(kernel, index, x.shape[1]), bias)
