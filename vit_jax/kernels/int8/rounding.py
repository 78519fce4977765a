"""Rounding to int8: symmetric, so that zero stays zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp

TOP = 127
"""Largest integer; -128 has no positive counterpart and is not used."""
LEAST = 1e-36
"""Largest magnitude below which all that shares a scale becomes 0: the inverse of a smaller step is not finite."""


def quantise(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """``x ~ steps * scale``, each number rounded to the nearest step, at a tie to the even one.

    Args:
      x: floats of any shape.
      axis: that shares a scale: the inputs of a kernel ``[in, out]``, the last axis of activations.

    Returns:
      int8 ``steps`` like x; float32 ``scale``, where ``axis`` has size 1: the largest magnitude over 127, 1 where that
      is 0 (or below :data:`LEAST`), NaN where it is NaN or infinite.
    """
    wide = x.astype(jnp.float32)
    top = jnp.max(jnp.abs(wide), axis, keepdims=True)
    scale = jnp.where(top < LEAST, 1.0, jnp.where(top < jnp.inf, top / TOP, jnp.nan))
    return jnp.round(wide * (1 / scale)).astype(jnp.int8), scale
