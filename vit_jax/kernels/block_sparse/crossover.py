"""When the block-sparse product is slower than the dense product with the same weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import sharding
from vit_jax.kernels.block_sparse.plan import as_pattern, parts, width
from vit_jax.types import Array

ROWS = 512
"""With fewer rows, writing the zeros of the dense weight costs about what multiplying them saves (where more rows lose,
197 rows took 0.6 to 1.3 of the dense product's time)."""
GPU_BLOCK = 128
"""On a GPU smaller blocks are too small for the matrix unit."""
MOVING = {"float32": 0.35, "bfloat16": 0.7}
"""What it costs on a CPU to read and write the activations of a map once more, in times of its dense product."""


def dense_is_faster(x: jax.Array, kernel: jax.Array, index: Array, bias: jax.Array | None) -> str | None:
    """Why the dense product would be faster here, as the end of a sentence, or None. Arrays or shapes, but the index.

    On a CPU the parts of a pattern cost their share of the arithmetic, and gathering and adding up activations.
    Measured, with gradients, for 1,576 rows, 768 to 3,072, time of dense over that of the parts: butterfly 25 % in
    blocks of 32 (twice the activations moved) 1.7 in float32 and 1.1 in bfloat16, in blocks of 128 (once) 2.2 and 1.2;
    50 % in blocks of 64 (twice) 1.1 and 0.9, of 32 (3.2 times) 0.8 and 0.5; random 25 %, float32, in blocks of 128
    (1.5 times) 1.8, of 32 (5 times) 0.8. With a pattern that is data 0.3 to 1.6 for 197 rows.

    On an H200, bfloat16, 12,608 rows, butterfly 25 %, forward and with gradients: blocks of 32 0.25 and 0.36, of 64
    0.35 and 0.48, of 128 0.92 and 1.20 (1,576 rows: 1.13 and 0.81).
    """
    per, block, out = kernel.shape
    density = per * block / x.shape[1]
    if density >= 1:
        return "every block is there"
    if sharding.platform() == "gpu" and x.dtype == jnp.bfloat16 and x.shape[0] >= ROWS and block < GPU_BLOCK:
        return f"blocks of {block}, below {GPU_BLOCK}, are slower on a GPU than the dense map from {ROWS} rows on"
    if sharding.platform() != "cpu":
        return None
    if not isinstance(index, np.ndarray):
        return "which blocks are there is known only at run time, and a CPU gathers slower than it multiplies zeros"
    if x.shape[0] < ROWS:
        return None
    moved = width(parts(as_pattern(index))) * block / (x.shape[1] + out)
    if density + MOVING[jnp.dtype(x.dtype).name] * (moved - 1) < 1:
        return None
    return (
        f"{density:.0%} of the weights in blocks of {block} move {moved:.1f} times the activations, which on a CPU is "
        f"slower than the dense map from {ROWS} rows on"
    )
