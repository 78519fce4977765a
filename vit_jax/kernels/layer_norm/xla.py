"""The formula: XLA fuses it, and parts of it into the products beside it; the kernel computes it tile by tile."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def normalised(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """``(x - mean) / sqrt(variance + epsilon)`` over the last axis of float32 ``[..., n]``, and that over ``x - mean``.

    The second is ``[..., 1]``.
    """
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    return centred * inverse, inverse


def run(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """``x [..., n]``, and ``x`` normalised over its last axis, in its type."""
    y, _ = normalised(x.astype(jnp.float32), epsilon)
    affine = [jax.lax.broadcast_in_dim(p.astype(jnp.float32), x.shape, (x.ndim - 1,)) for p in (scale, bias)]
    return x, (y * affine[0] + affine[1]).astype(x.dtype)
