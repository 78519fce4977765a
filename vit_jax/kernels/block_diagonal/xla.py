"""The block-diagonal product as one plain product per block.

XLA:CPU is 5 to 25 % slower with one batched product in float32 and refuses it in bfloat16. Against the dense product of
768 to 3,072 features, 4 to 32 blocks, 197 and 1,576 rows, on two cores: 1.7 to 7 times as fast in float32 and 1.4 to
3.8 in bfloat16, forward alone or with the gradients; 768 to 768 in 4 blocks 1.8 to 2.5. One shape loses, 768 to 3,072
in bfloat16, 1,576 rows, forward alone (0.8 to 0.9): there the blocks' copies take longer than they save, and so does
filling up with zeros.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax.kernels.products import matmul

UNROLLED = 128
"""Most blocks, chosen and not measured: each is a product of its own in the program, which takes longer to compile."""


def slower_reason(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> str | None:
    """Why the dense product should run instead, as the end of a sentence, or None. Arrays or shapes."""
    if kernel.shape[0] > UNROLLED:
        return f"{kernel.shape[0]} blocks are more than the {UNROLLED} products it is unrolled for"
    return None


def run(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """The product of ``x [..., n * in]``; see ``vit_jax.kernels.block_diagonal``."""
    n, size, features = kernel.shape
    parts = jax.lax.split(x, (size,) * n, axis=x.ndim - 1)  # its transpose is one concatenation
    kernels = [jnp.reshape(k, (size, features)) for k in jax.lax.split(kernel, (1,) * n)]
    biases = [None] * n if bias is None else jax.lax.split(bias, (features,) * n)
    return jnp.concatenate([matmul(*each) for each in zip(parts, kernels, biases, strict=True)], axis=-1)
