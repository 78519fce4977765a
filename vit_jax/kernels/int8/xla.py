"""The int8 product for any platform, and the gradients that every implementation has."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.kernels.int8.rounding import TOP, quantise
from vit_jax.kernels.products import bias_gradient, differentiable, dot, outer, rounded


def backward(
    x: jax.Array, values: jax.Array, scale: jax.Array, bias: jax.Array | None, g: jax.Array
) -> tuple[jax.Array | None, ...]:
    """Gradients of ``(x @ values) * scale + bias``: straight through the rounding of x, none of the integers."""
    g = g.astype(x.dtype)
    scaled = (g.astype(jnp.float32) * along(scale, g)).astype(x.dtype)
    dx = rounded(scaled, values.astype(x.dtype), g.ndim - 1, 1)
    dscale = jnp.sum(values.astype(jnp.float32) * outer(x, g), 0)
    return dx, None, dscale.astype(scale.dtype), bias_gradient(g, bias)


@differentiable(backward)
def weight_only(x: jax.Array, values: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    """The product of ``x`` as it is; see ``vit_jax.kernels.int8``."""
    return rescaled(dot(x, values.astype(x.dtype), x.ndim - 1, 0), scale, bias).astype(x.dtype)


def unsupported_reason(x: jax.Array, values: jax.Array, scale: jax.Array, bias: jax.Array | None) -> str | None:
    """Why int32 does not hold the sums, as the end of a sentence, or None. Arrays or shapes."""
    return too_long(values.shape[0], TOP)


def too_long(inputs: int, largest: int) -> str | None:
    """Why int32 does not hold a sum of ``inputs`` products of an integer up to ``largest`` with a weight, or None."""
    most = (2**31 - 1) // (largest * TOP)
    return f"sums over {inputs} inputs, more than {most}, may not fit into int32" if inputs > most else None


@differentiable(backward)
def dynamic(x: jax.Array, values: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    """The product of the rounded rows of ``x``; see ``vit_jax.kernels.int8``."""
    steps, rows = quantise(x, -1)
    return rescaled(integers(steps, values).astype(jnp.float32) * rows, scale, bias).astype(x.dtype)


def integers(x: jax.Array, values: jax.Array, precision: Any = None) -> jax.Array:
    """int32 ``[..., in] @ [in, out]`` of bytes, exact."""
    return jax.lax.dot_general(x, values, (((x.ndim - 1,), (0,)), ((), ())), precision, jnp.int32)


def rescaled(y: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    """``y * scale + bias`` of float32 ``[..., out]``."""
    y = y * along(scale, y)
    return y if bias is None else y + along(bias, y)


def along(vector: jax.Array, like: jax.Array) -> jax.Array:
    """float32 ``vector [n]`` as it stands beside ``like [..., n]``."""
    return jax.lax.broadcast_in_dim(vector.astype(jnp.float32), like.shape, (like.ndim - 1,))
