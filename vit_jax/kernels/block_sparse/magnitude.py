"""The largest blocks of a dense kernel: which they are, what they hold, and the way of their gradients back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.kernels.block_sparse.dense import weight
from vit_jax.types import Array


def largest(kernel: jax.Array, block: int, per: int) -> jax.Array:
    """The ``per`` input blocks of every output block with the largest Frobenius norms, ascending.

    The best mask of its kind: outputs choose by themselves. A norm that is NaN counts as largest.

    Args:
      kernel: ``[in, out]``.
      block: rows and columns of a block.
      per: blocks to keep.

    Returns:
      int32 ``[out / block, per]``, without a gradient.
    """
    blocks = blocks_of(jax.lax.stop_gradient(kernel), block)
    size = jnp.sum(jnp.square(blocks.astype(jnp.float32)), (1, 3)).T
    return jnp.sort(jax.lax.top_k(jnp.where(jnp.isnan(size), jnp.inf, size), per)[1], 1)


def blocks_of(kernel: jax.Array, block: int) -> jax.Array:
    inputs, out = kernel.shape
    return jnp.reshape(kernel, (inputs // block, block, out // block, block))


@jax.custom_vjp
def kept(kernel: jax.Array, index: Array) -> jax.Array:
    """What ``kernel [in, out]`` holds in the blocks of ``index [out_blocks, per]``: ``[per, b, out]``.

    The gradient goes back into these blocks, but not into those that are zero: they stay zero under optimizers that
    treat every weight by itself.
    """
    block = kernel.shape[1] // index.shape[0]
    found = jax.vmap(lambda column, at: column[at], (2, 0), 2)(blocks_of(kernel, block), jnp.asarray(index))
    return jnp.reshape(found, (index.shape[1], block, kernel.shape[1]))


def _kept_fwd(kernel: jax.Array, index: Array) -> tuple[jax.Array, Any]:
    found = kept(kernel, index)
    return found, (found, index, jnp.zeros((kernel.shape[0], 0), kernel.dtype))


def _kept_bwd(saved: Any, g: jax.Array) -> tuple[jax.Array, None]:
    found, index, like = saved
    per, block, out = found.shape
    alive = jnp.any(jnp.reshape(found, (per, block, out // block, block)) != 0, (1, 3), keepdims=True)
    g = jnp.reshape(jnp.where(alive, jnp.reshape(g, (per, block, out // block, block)), 0.0), found.shape)
    return weight(g.astype(like.dtype), index, like.shape[0]), None


kept.defvjp(_kept_fwd, _kept_bwd)


def prune(kernel: jax.Array, block: int, per: int) -> jax.Array:
    """``[in, out]`` with zeros in all but the ``per`` :func:`largest` blocks of every output block."""
    index = largest(kernel, block, per)
    return weight(kept(kernel, index), index, kernel.shape[0])
