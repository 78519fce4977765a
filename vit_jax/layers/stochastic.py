"""Dropout and stochastic depth with explicit keys: a None key means "evaluation", nothing is drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp

LEVELS = 2**16


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability ``rate`` and scales the others so that the mean stays (Srivastava et al. 2014).

    Sixteen random bits an element halve the cost of the generator; rate and scale are rounded to 1/65536.
    """
    if key is None or rate == 0.0:
        return x
    threshold = round(rate * LEVELS)
    keep = jax.random.bits(key, x.shape, "uint16") >= jnp.uint16(threshold)
    return jnp.where(keep, x * (LEVELS / (LEVELS - threshold)), jnp.zeros_like(x))


def drop_path(x: jax.Array, rate: float | jax.Array, key: jax.Array | None) -> jax.Array:
    """Drops a residual branch ``[B, ...]`` for whole examples, scaled so that the mean stays (Huang et al. 2016)."""
    if key is None:
        return x
    kept = 1.0 - jnp.asarray(rate, jnp.float32)
    keep = jax.random.bernoulli(key, kept, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / kept.astype(x.dtype), jnp.zeros_like(x))
