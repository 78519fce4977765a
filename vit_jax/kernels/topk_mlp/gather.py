"""Each token's own rows of the kernel, gathered by XLA."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from vit_jax.kernels.topk_mlp.dense import with_its_gradients

SHARE = 3
"""The gathered rows may be one in so many of the kernel's.

Measured on two cores, F 3,072, D 768, against the dense product: k 32, 128, 307 of one token 2.6, 2.2 and 1.9 times as
fast in float32, 15, 17 and 9 in bfloat16 with a float32 kernel, which dense has to cast, and 12, 7 and 8 with a
bfloat16 one. Eight tokens of 128 units gain 1.2, 2.7 and 1.2; four of 307 or sixteen of 128 lose in one of the types.
"""


def run(h: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, k: int) -> jax.Array:
    """``h [..., F] @ kernel + bias``; see ``vit_jax.kernels.topk_mlp``."""
    return _product_of(k, h, kernel, bias)


def slower_reason(h: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, k: int) -> str | None:
    """Why the dense product would be faster, as the end of a sentence, or None. Arrays or shapes."""
    rows, units = math.prod(h.shape[:-1]), kernel.shape[0]
    if parted := split_units():
        return parted
    if not isinstance(rows, int):  # exported for any batch
        return "the number of tokens is not known"
    if SHARE * rows * k > units:
        return f"{k} rows of the kernel for each of {rows} tokens are more than a third of its {units}"
    return None


def split_units() -> str | None:
    """Why on this mesh a device has not all rows of the kernel, as the end of a sentence, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape.get("tensor", 1)
    return None if parts == 1 else f"the hidden units are divided among {parts} devices"


@with_its_gradients
def _product_of(k: int, h: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    rows = jnp.reshape(h, (-1, h.shape[-1]))
    index = jax.lax.top_k(jnp.abs(rows.astype(jnp.float32)), k)[1]
    values = jnp.take_along_axis(rows, index, axis=1)
    chosen = jnp.take(kernel, index, axis=0, mode="clip").astype(h.dtype)  # [rows, k, D]
    dims = (((1,), (1,)), ((0,), (0,)))
    y = jax.lax.dot_general(values, chosen, dims, preferred_element_type=jnp.float32)
    if bias is not None:
        y += bias.astype(jnp.float32)[None]
    return jnp.reshape(y.astype(h.dtype), (*h.shape[:-1], kernel.shape[1]))
