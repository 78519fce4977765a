"""When the Monarch product is slower than the dense product with the same weight."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import sharding

ROWS = 1024
"""From so many rows on, multiplying the weight out costs no more than it saves (``bench kernels --op 'monarch(2)'``:
768 x 768 so took 0.7 to 1.0 of the factors' time for 1,576 and 6,304 rows, with gradients or not, in both types)."""
SHARE = {"cpu": 1.0, "gpu": 0.3, "tpu": 0.1}
"""The share of the dense map's weights from which on the dense product is faster."""


def dense_is_faster(
    x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, *, input_parts: int, blocked: bool
) -> str | None:
    """Why the dense product would be faster here, as the end of a sentence, or None. Arrays or shapes.

    Measured on CPUs: with half of the dense weights or fewer the factors win forward and backward but for single
    shapes, which are within 20 % of dense; with as many as the dense map has, they lose. On an H200 they lose with 31 %
    of them, 0.72 of dense forward and 0.87 with gradients in bfloat16 (12,608 rows, 768 to 3072).
    For a v5e chip the compiler expects four times the cycles of dense with 31 % of them (the same shapes); that they
    win below 10 % there is not read, but in proportion to that.
    """
    blocks, _, size = kernel_1.shape
    factors, dense = kernel_1.size + kernel_2.size, blocks * size * kernel_2.shape[0] * kernel_2.shape[1]
    here = sharding.platform()
    if here == "gpu" and x.dtype == jnp.float32:
        return None  # not measured
    if factors >= SHARE.get(here, np.inf) * dense and math.prod(x.shape[:-1]) >= ROWS:
        return (
            f"factors {kernel_1.shape} and {kernel_2.shape} have {factors / dense:.0%} of the dense map's weights, "
            f"which on a {here.upper()} is slower than that map from {ROWS:,} rows on"
        )
    return None
