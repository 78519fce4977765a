"""The dense product that every layer and kernel builds on.

The accumulation rule: operands in the compute type, sums in float32, one rounding at the end. Matrix units (TPU, GPU,
AMX on the CPU) want exactly this; a product whose result type is bfloat16 runs several times slower on the CPU, and so
does one that mixes float32 with bfloat16, which automatic differentiation of the rule would emit. Hence the VJP below.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    """Contracts one axis of ``a`` with one of ``b`` (both of one type): free axes of ``a``, then of ``b``; float32."""
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=jnp.float32)


def outer(x: jax.Array, g: jax.Array) -> jax.Array:
    """``x^T g`` over all leading axes: ``[..., in], [..., out] -> [in, out]``, float32.

    In float32 over one axis. In bfloat16 XLA:CPU folds the transposition into a product over one axis and leaves the
    fast path (4x slower), so there over two, before which it copies ``x^T`` (in float32 that copy costs up to 2x). The
    barrier keeps a transposition of the result, as of tied weights, from being folded in either, which the fast path
    refuses to run.
    """
    if x.dtype == jnp.float32:
        x, g = jnp.reshape(x, (-1, x.shape[-1])), jnp.reshape(g, (-1, g.shape[-1]))
    elif x.ndim == 2:
        x, g = x[None], g[None]
    rows = tuple(range(x.ndim - 1))
    product = jax.lax.dot_general(x, g, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(product)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """``x @ kernel + bias``: operands in the type of ``x``, accumulated in float32, rounded once.

    Args:
      x: ``[..., in]``; its type is the compute type.
      kernel: ``[in, out]`` in the parameter type.
      bias: ``[out]`` in the parameter type, or None.

    Returns:
      ``[..., out]`` in the type of ``x``. Gradients of ``kernel`` and ``bias`` are float32 sums in the parameter type.
    """
    return _matmul_fwd(x, kernel, bias)[0]


def _matmul_fwd(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, Any]:
    low = kernel.astype(x.dtype)
    y = dot(x, low, x.ndim - 1, 0)
    if bias is not None:
        y += jax.lax.broadcast_in_dim(bias.astype(jnp.float32), y.shape, (y.ndim - 1,))
    types = jnp.zeros((0,), kernel.dtype), None if bias is None else jnp.zeros((0,), bias.dtype)
    return y.astype(x.dtype), (x, low, *types)


def _matmul_bwd(saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, kernel, kernel_type, bias_type = saved
    g = g.astype(x.dtype)
    dx = dot(g, kernel, g.ndim - 1, 1).astype(x.dtype)
    rows = tuple(range(g.ndim - 1))
    dbias = None if bias_type is None else jnp.sum(g, axis=rows, dtype=jnp.float32).astype(bias_type.dtype)
    return dx, outer(x, g).astype(kernel_type.dtype), dbias


matmul.defvjp(_matmul_fwd, _matmul_bwd)
