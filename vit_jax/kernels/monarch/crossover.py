"""When the Monarch product is slower than the dense product with the same weight."""

from __future__ import annotations

import jax

from vit_jax import sharding

ROWS = 1024
"""From so many rows on, multiplying the weight out costs no more than it saves (``bench kernels --op 'monarch(2)'``:
768 x 768 so took 0.7 to 1.0 of the factors' time for 1,576 and 6,304 rows, with gradients or not, in both types)."""


def dense_is_faster(
    x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, *, input_parts: int, blocked: bool
) -> str | None:
    """Why the dense product would be faster here, as the end of a sentence, or None. Arrays or shapes.

    Measured on CPUs: with half of the dense weights or fewer the factors win forward and backward but for single
    shapes, which are within 20 % of dense; with as many as the dense map has, they lose.
    """
    blocks, _, size = kernel_1.shape
    factors, dense = kernel_1.size + kernel_2.size, blocks * size * kernel_2.shape[0] * kernel_2.shape[1]
    if sharding.platform() == "cpu" and factors >= dense and x.shape[0] >= ROWS:
        return (
            f"factors {kernel_1.shape} and {kernel_2.shape} have {factors / dense:.0%} of the dense map's weights, "
            f"which on a CPU is slower than that map from {ROWS:,} rows on"
        )
    return None
