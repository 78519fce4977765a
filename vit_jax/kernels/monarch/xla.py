"""The Monarch product as a few plain products with contiguous chunks between them.

For few blocks the loop over them is unrolled: on the CPU only plain two-dimensional products are fast in bfloat16, and
XLA fuses chunks that are stacked into one copy (concatenated, it does not). The slow spots are in the gradients: slices
are transposed to sums of padded arrays, hence ``lax.split`` and :func:`_blocks`. Against the dense product of 1,576
rows, 4 blocks, forward and backward on two cores: 768 to 3,072 2.0 times as fast in float32 and 2.2 in bfloat16, 768 to
768 1.3 and 1.4; batched products take 1.1 to 1.6 times as long in bfloat16.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.kernels.monarch.layout import Sizes, blocked_bias, first
from vit_jax.kernels.products import dots, matmul

UNROLLED = 16
"""More blocks than this, in either factor, run as batched products: the unrolled program grows as their product."""


def run(
    x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, *, input_parts: int, blocked: bool
) -> jax.Array:
    """The product of ``x [..., n]``, as ``[rows, l * s]``; see ``vit_jax.kernels.monarch``."""
    sizes = Sizes.of(x.shape[-1], kernel_1, kernel_2, bias, input_parts)
    form = _unrolled if max(sizes.K, sizes.L) <= UNROLLED else _batched
    y = form(sizes, jnp.reshape(x, (-1, sizes.inputs)), first(sizes, kernel_1), kernel_2, bias, blocked)
    return jnp.reshape(y, (-1, sizes.outputs))


def _unrolled(sizes: Sizes, x: Any, chunks: Any, kernel_2: Any, bias: Any, blocked: bool) -> jax.Array:
    K, P, T, L, S, _ = sizes
    kernels = jnp.transpose(jnp.reshape(chunks, (K, L * T, P)), (0, 2, 1))
    middle = [matmul(u, kernel) for u, kernel in zip(_blocks(sizes, x), kernels, strict=True)]
    blocks = jax.lax.split(jnp.stack([jnp.reshape(h, (-1, L, T)) for h in middle], 1), [1] * L, axis=2)
    kernels = jnp.transpose(kernel_2, (0, 2, 1))
    biases = [None] * L if bias is None else jnp.reshape(blocked_bias(sizes, bias), (L, S))
    triples = zip(blocks, kernels, biases, strict=True)
    outputs = [matmul(jnp.reshape(u, (-1, K * T)), kernel, b) for u, kernel, b in triples]
    return _stacked(1 if blocked else 2, *outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stacked(axis: int, *blocks: jax.Array) -> jax.Array:
    """``jnp.stack``; its gradient is cut once for all who need it, where XLA:CPU would cut it for each."""
    return jnp.stack(blocks, axis)


def _stacked_bwd(axis: int, count: int, g: jax.Array) -> tuple[jax.Array, ...]:
    parts = jax.lax.split(g, [1] * count, axis=axis)
    return tuple(jax.lax.optimization_barrier([jnp.squeeze(part, axis) for part in parts]))


_stacked.defvjp(lambda axis, *blocks: (jnp.stack(blocks, axis), len(blocks)), _stacked_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocks(sizes: Sizes, x: jax.Array) -> tuple[jax.Array, ...]:
    """``x [rows, n]`` -> the ``[rows, P]`` of every block of the first factor; the gradient is one stack."""
    piece, apart = sizes.P // sizes.parts, sizes.inputs // sizes.parts
    starts = [[j * apart + k * piece for j in range(sizes.parts)] for k in range(sizes.K)]
    return tuple(jnp.reshape(jnp.stack([x[:, s : s + piece] for s in row], 1), (-1, sizes.P)) for row in starts)


def _blocks_bwd(sizes: Sizes, _: None, g: tuple[jax.Array, ...]) -> tuple[jax.Array]:
    pieces = [jnp.reshape(block, (-1, sizes.parts, sizes.P // sizes.parts)) for block in g]
    return (jnp.reshape(jnp.stack(pieces, 2), (-1, sizes.inputs)),)


_blocks.defvjp(lambda sizes, x: (_blocks(sizes, x), None), _blocks_bwd)


def _batched(sizes: Sizes, x: Any, chunks: Any, kernel_2: Any, bias: Any, blocked: bool) -> jax.Array:
    K, P, T, L, S, parts = sizes
    blocks = jnp.transpose(jnp.reshape(x, (-1, parts, K, P // parts)), (2, 0, 1, 3))
    middle = _blockwise(jnp.reshape(blocks, (K, -1, P)), jnp.reshape(chunks, (K, L * T, P)), None)
    middle = jnp.transpose(jnp.reshape(middle, (K, -1, L, T)), (2, 1, 0, 3))
    biases = None if bias is None else jnp.reshape(blocked_bias(sizes, bias), (L, S))
    y = _blockwise(jnp.reshape(middle, (L, -1, K * T)), kernel_2, biases)
    return jnp.transpose(y, (1, 0, 2) if blocked else (1, 2, 0))


@jax.custom_vjp
def _blockwise(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """``[G, rows, in], [G, out, in], [G, out] or None -> [G, rows, out]`` by the rule of ``matmul``."""
    return _blockwise_fwd(x, kernel, bias)[0]


def _blockwise_fwd(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, Any]:
    low = kernel.astype(x.dtype)
    y = dots(x, low, 2, 2)
    if bias is not None:
        y += bias.astype(jnp.float32)[:, None, :]
    return y.astype(x.dtype), (x, low, jnp.zeros((0,), kernel.dtype), bias)


def _blockwise_bwd(saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, low, kernel, bias = saved
    g = g.astype(x.dtype)
    dbias = None if bias is None else jnp.sum(g, axis=1, dtype=jnp.float32).astype(bias.dtype)
    return dots(g, low, 2, 1).astype(x.dtype), dots(g, x, 1, 1).astype(kernel.dtype), dbias


_blockwise.defvjp(_blockwise_fwd, _blockwise_bwd)
