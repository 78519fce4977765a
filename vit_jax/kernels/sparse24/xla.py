"""Unpack, then a dense product; and the gradients, which every implementation shares."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax.kernels.products import dot, outer
from vit_jax.kernels.sparse24.packed import select, unpack


def forward(
    x: jax.Array, values: jax.Array, index: jax.Array, bias: jax.Array | None, scale: jax.Array | None
) -> jax.Array:
    """``(x @ kernel) * scale + bias`` with the kernel written out in the type of ``x``."""
    y = dot(x, unpack(values.astype(x.dtype), index), x.ndim - 1, 0)
    if scale is not None:
        y = y * _wide(scale, y)
    if bias is not None:
        y = y + _wide(bias, y)
    return y.astype(x.dtype)


def backward(
    x: jax.Array,
    values: jax.Array,
    index: jax.Array,
    bias: jax.Array | None,
    scale: jax.Array | None,
    g: jax.Array,
) -> tuple[jax.Array | None, ...]:
    """Gradients of ``x``, ``values`` (None: integers), ``index`` (None), ``bias`` and ``scale``.

    With ``z = x @ kernel`` and D what ``x^T g`` holds at the places of the values: dvalues = D scale, dscale is the sum
    of values D over the inputs. The matrix of D costs as much as training; without its use ``jit`` leaves it out.
    """
    g = g.astype(x.dtype)
    scaled = g if scale is None else (g.astype(jnp.float32) * _wide(scale, g)).astype(x.dtype)
    dx = dot(scaled, unpack(values.astype(x.dtype), index), g.ndim - 1, 1).astype(x.dtype)
    rows = tuple(range(g.ndim - 1))
    dbias = None if bias is None else jnp.sum(g, axis=rows, dtype=jnp.float32).astype(bias.dtype)
    if scale is None and not jnp.issubdtype(values.dtype, jnp.floating):
        return dx, None, None, dbias, None
    d = select(outer(x, g), index)
    dscale = None if scale is None else jnp.sum(values.astype(jnp.float32) * d, 0).astype(scale.dtype)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return dx, None, None, dbias, dscale
    return dx, (d if scale is None else d * _wide(scale, d)).astype(values.dtype), None, dbias, dscale


def _wide(vector: jax.Array, like: jax.Array) -> jax.Array:
    return jax.lax.broadcast_in_dim(vector.astype(jnp.float32), like.shape, (like.ndim - 1,))
