"""The int8 product of x86 CPUs that multiply bytes without a sign by bytes with one (AVX-512 VNNI).

XLA:CPU (YNNPACK) has a kernel for these instructions; bytes with signs on both sides it widens to 16 bits first, which
is slower than bfloat16. So x is moved up by 128, and 128 times the sums of the weights are taken off again: the same
integers.
"""

from __future__ import annotations

import functools
import pathlib

import jax
import jax.numpy as jnp

from vit_jax.kernels.dispatch import Implementation
from vit_jax.kernels.int8 import xla
from vit_jax.kernels.int8.rounding import TOP, quantise
from vit_jax.kernels.products import differentiable

OFFSET = TOP + 1
AS_THEY_ARE = jax.lax.DotAlgorithmPreset.DEFAULT
"""Without it JAX casts operands of two types to that of the result before a product on a CPU."""


@functools.cache
def instructions() -> frozenset[str]:
    """Names of the instruction sets of this CPU, as Linux has them; none on another system."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_bytes().split(b"\n")
    except OSError:
        return frozenset()
    flags = next((line.partition(b":")[2] for line in lines if line.startswith(b"flags")), b"")
    return frozenset(flags.decode("ascii", "replace").split())


def unsupported_reason(x: jax.Array, values: jax.Array, scale: jax.Array, bias: jax.Array | None) -> str | None:
    """Why this way is not taken, as the end of a sentence, or None. Arrays or shapes."""
    if "avx512_vnni" not in instructions():
        return "this CPU has no AVX-512 VNNI"
    return xla.too_long(values.shape[0], TOP + OFFSET)


def slower_reason(x: jax.Array, values: jax.Array, scale: jax.Array, bias: jax.Array | None) -> str | None:
    """Why bytes with signs are multiplied at least as fast, as the end of a sentence, or None."""
    return "this CPU has AMX for bytes with signs" if "amx_int8" in instructions() else None


@differentiable(xla.backward)
def run(x: jax.Array, values: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    """As :func:`vit_jax.kernels.int8.xla.dynamic`, the same numbers."""
    steps, rows = quantise(x, -1)
    unsigned = jax.lax.bitcast_convert_type(steps, jnp.uint8) ^ jnp.uint8(OFFSET)
    two = jnp.ones((2, values.shape[0]), jnp.int8)  # of one row XLA:CPU makes a slow loop, as of jnp.sum
    above = OFFSET * xla.integers(two, values)[0]
    y = xla.integers(unsigned, values, AS_THEY_ARE)
    y = y - jax.lax.broadcast_in_dim(above, y.shape, (y.ndim - 1,))
    return xla.rescaled(y.astype(jnp.float32) * rows, scale, bias).astype(x.dtype)


IMPLEMENTATION = Implementation(run, unsupported_reason, slower_reason, platform="cpu")
