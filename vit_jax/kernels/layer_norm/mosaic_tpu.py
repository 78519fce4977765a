"""A Pallas kernel for TPUs; its gradient takes in that of the residual branch, which is one pass less."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from vit_jax.kernels import vmem
from vit_jax.kernels.dispatch import Implementation
from vit_jax.kernels.layer_norm import xla
from vit_jax.kernels.sharded import shard_rows

ROWS = (512, 256, 128, 64, 32, 16)
"""Rows of a tile, the first that fits into VMEM."""


def unsupported_reason(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> str | None:
    """Why the kernel cannot run this, as the end of a sentence, or None. Arrays or shapes."""
    if reason := vmem.unsupported_rows(x):
        return reason
    return vmem.excess("it", _vmem(x.shape[-1], x.dtype.itemsize, ROWS[-1]))


def _vmem(width: int, itemsize: int, rows: int) -> int:
    return rows * width * (8 * itemsize + 24)


def run(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """``x [..., n]``, and ``x`` normalised over its last axis, in its type."""
    same, y = _beside(epsilon, vmem.images(x), scale, bias)
    return jnp.reshape(same, x.shape), jnp.reshape(y, x.shape)


def _gradients(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array, g: Any) -> tuple[jax.Array, ...]:
    f = functools.partial(_backward, epsilon)
    (dx,), (dscale, dbias) = shard_rows(f, (x, *(a.astype(x.dtype) for a in g)), (_row(scale),))
    return dx, dscale[0].astype(scale.dtype), dbias[0].astype(bias.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _beside(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
    """Without gradients XLA's form is as fast beside dense products, into which it fuses parts of the norm."""
    return xla.run(x, scale, bias, epsilon)


def _beside_fwd(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
    (y,), _ = shard_rows(functools.partial(_forward, epsilon), (x,), (_row(scale), _row(bias)))
    return (x, y), (x, scale, bias)


_beside.defvjp(_beside_fwd, lambda epsilon, saved, g: _gradients(epsilon, saved[0], saved[1], saved[2], g))


def _row(parameter: jax.Array) -> jax.Array:
    return parameter.astype(jnp.float32)[None]


def _tile(x: jax.Array) -> int:
    return vmem.even("layer_norm", ROWS, x.shape[-2], lambda rows: _vmem(x.shape[-1], x.dtype.itemsize, rows))


def _forward(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
    kernel = functools.partial(_forward_kernel, epsilon)
    return tuple(vmem.over_rows(kernel, "norm_forward", _tile(x), (x,), (scale, bias), x.shape[-1:], ())), ()


def _backward(epsilon: float, x: jax.Array, beside: jax.Array, g: jax.Array, scale: jax.Array) -> Any:
    kernel = functools.partial(_backward_kernel, epsilon, x.shape[-2])
    rows, sums = (x, beside, g), (scale.shape, scale.shape)
    dx, *found = vmem.over_rows(kernel, "norm_backward", _tile(x), rows, (scale,), x.shape[-1:], sums)
    return (dx,), tuple(found)


def _forward_kernel(epsilon: float, x: Any, scale: Any, bias: Any, y: Any) -> None:
    normalised, _ = xla.normalised(x[...].astype(jnp.float32), epsilon)
    y[...] = (normalised * scale[...] + bias[...]).astype(y.dtype)


def _backward_kernel(
    epsilon: float, rows: int, x: Any, beside: Any, g: Any, scale: Any, dx: Any, dscale: Any, dbias: Any
) -> None:
    read = lambda ref: vmem.inside(ref[...], pl.program_id(1), rows).astype(jnp.float32)  # noqa: E731
    (normalised, inverse), outer = xla.normalised(read(x), epsilon), read(g)
    dscale[...] += jnp.sum(outer * normalised, axis=0, keepdims=True)
    dbias[...] += jnp.sum(outer, axis=0, keepdims=True)
    inner = outer * scale[...]
    along = jnp.mean(inner * normalised, axis=1, keepdims=True)
    inner -= jnp.mean(inner, axis=1, keepdims=True) + normalised * along
    dx[...] = (beside[...].astype(jnp.float32) + inner * inverse).astype(dx.dtype)


IMPLEMENTATION = Implementation(run, unsupported_reason, platform="tpu")
