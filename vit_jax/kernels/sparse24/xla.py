"""Unpack, then a dense product; and what every implementation shares: the gradients, the way to a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.kernels.products import bias_gradient, differentiable, dot, outer, shift
from vit_jax.kernels.sharded import shard_rows
from vit_jax.kernels.sparse24.packed import select, unpack


def _backward(
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
    dbias = bias_gradient(g, bias)
    if scale is None and not jnp.issubdtype(values.dtype, jnp.floating):
        return dx, None, None, dbias, None
    d = select(outer(x, g), index)
    dscale = None if scale is None else jnp.sum(values.astype(jnp.float32) * d, 0).astype(scale.dtype)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return dx, None, None, dbias, dscale
    return dx, (d if scale is None else d * _wide(scale, d)).astype(values.dtype), None, dbias, dscale


@differentiable(_backward)
def run(
    x: jax.Array, values: jax.Array, index: jax.Array, bias: jax.Array | None, scale: jax.Array | None
) -> jax.Array:
    """``(x @ kernel) * scale + bias`` with the kernel written out in the type of ``x``."""
    y = dot(x, unpack(values.astype(x.dtype), index), x.ndim - 1, 0)
    if scale is not None:
        y = y * _wide(scale, y)
    if bias is not None:
        y = y + _wide(bias, y)
    return y.astype(x.dtype)


def by_kernel(product: Callable[..., Any]) -> Callable[..., jax.Array]:
    """:data:`run` by a kernel: each device its rows, all weights.

    Args:
      product: ``(x [rows, in], values, index, affine) -> ([rows, out],), ()``, where ``affine``, float32 ``[2, out]``,
        holds the scale and the bias.
    """

    @differentiable(_backward)
    def forward(x: Any, values: Any, index: Any, bias: Any, scale: Any) -> jax.Array:
        out = values.shape[1]
        scales = jnp.ones((1, out)) if scale is None else scale.astype(jnp.float32)[None]
        affine = jnp.concatenate([scales, shift(bias, out)])
        (y,), _ = shard_rows(product, (jnp.reshape(x, (-1, x.shape[-1])),), (values, index, affine))
        return jnp.reshape(y, (*x.shape[:-1], out))

    return forward


def _wide(vector: jax.Array, like: jax.Array) -> jax.Array:
    return jax.lax.broadcast_in_dim(vector.astype(jnp.float32), like.shape, (like.ndim - 1,))
