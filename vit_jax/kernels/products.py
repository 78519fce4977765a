"""The dense product that every layer and kernel builds on.

The accumulation rule: operands in the compute type, sums in float32, one rounding at the end. Matrix units (TPU, GPU,
AMX on the CPU) want exactly this; a product whose result type is bfloat16 runs several times slower on the CPU, and so
does one that mixes float32 with bfloat16, which automatic differentiation of the rule would emit. Hence the VJP below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax import sharding


def dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int, precision: Any = None) -> jax.Array:
    """Contracts one axis of ``a`` with one of ``b`` (both of one type): free axes of ``a``, then of ``b``; float32."""
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), precision, jnp.float32)


def rounded(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    """:func:`dot` rounded once to the type of the operands.

    On a GPU the product itself is asked for that type: its matrix units sum in float32 all the same, and cuBLAS would
    write float32 results to memory for another kernel to read and round.
    """
    if sharding.platform() != "gpu":
        return dot(a, b, axis_a, axis_b).astype(a.dtype)
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=a.dtype)


def dots(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    """:func:`dot` of each ``a[i]`` and ``b[i]``; the barrier keeps XLA:CPU from folding transpositions into it."""
    dims = (((axis_a,), (axis_b,)), ((0,), (0,)))
    return jax.lax.optimization_barrier(jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32))


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


def shift(bias: jax.Array | None, outputs: int) -> jax.Array:
    """``bias`` as a kernel adds it: float32 ``[1, outputs]``, zeros for None."""
    return (jnp.zeros(outputs) if bias is None else bias.astype(jnp.float32))[None]


def bias_gradient(g: jax.Array, bias: jax.Array | None) -> jax.Array | None:
    """The float32 sum of ``g [..., out]`` over all leading axes in the type of ``bias``, None for None.

    On a TPU bfloat16 is summed by the matrix units, as a product with ones: of loss and gradient of two blocks of
    ViT-B/16 on a v5e chip the compiler expects 1.4 % fewer cycles so.
    """
    if bias is None:
        return None
    rows = tuple(range(g.ndim - 1))
    if sharding.platform() != "tpu" or g.dtype != jnp.bfloat16:
        return jnp.sum(g, axis=rows, dtype=jnp.float32).astype(bias.dtype)
    ones = jnp.ones((8, *g.shape[:-1]), g.dtype)  # rows of a register: one alone XLA would make a sum of again
    sums = jax.lax.dot_general(ones, g, ((tuple(r + 1 for r in rows), rows), ((), ())), None, jnp.float32)
    return sums[0].astype(bias.dtype)


def differentiable(
    backward: Callable[..., tuple[Any, ...]], static: int = 0
) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
    """Decorates a function that has the gradients ``backward(*args, g)`` and saves nothing for them but its arguments.

    Args:
      backward: a gradient for every argument that is not static, None for what is None or an integer.
      static: how many of the first arguments are static; the others are arrays or None.
    """

    def decorate(forward: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        f = jax.custom_vjp(forward, nondiff_argnums=tuple(range(static)))
        f.defvjp(
            lambda *args: (forward(*args), args[static:]),
            lambda *args: backward(*args[:static], *args[static], args[-1]),
        )
        return f

    return decorate


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """``x @ kernel + bias``: operands in the type of ``x``, accumulated in float32, rounded once.

    On a GPU the bias is an operand too, which cuBLAS adds before it rounds.

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
    product = rounded if sharding.platform() == "gpu" else dot
    y = product(x, low, x.ndim - 1, 0)
    if bias is not None:
        y += jax.lax.broadcast_in_dim(bias.astype(y.dtype), y.shape, (y.ndim - 1,))
    return y.astype(x.dtype), (x, low, jnp.zeros((0,), kernel.dtype), bias)  # of the kernel only the type is needed


def _matmul_bwd(saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, low, kernel, bias = saved
    g = g.astype(x.dtype)
    return rounded(g, low, g.ndim - 1, 1), outer(x, g).astype(kernel.dtype), bias_gradient(g, bias)


matmul.defvjp(_matmul_fwd, _matmul_bwd)
