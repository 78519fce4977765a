"""Product with a 2:4 kernel that stays packed: ``[..., in] -> [..., out]``.

``y = (x @ unpack(values, index)) * scale + bias``. Of every four consecutive inputs of an output two weights are
stored with their places (:mod:`.packed`): 9/16 of the bytes of a dense bfloat16 kernel, 5/16 with int8 values. With few
rows a product takes as long as its weights take to arrive, so ``mosaic_tpu`` and ``mosaic_gpu`` expand them where they
arrive, beside the matrix unit; with many rows the arithmetic decides, of which neither saves any, and ``xla`` unpacks
first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax.kernels.dispatch import Implementation, choose
from vit_jax.kernels.sparse24 import mosaic_gpu, mosaic_tpu, xla
from vit_jax.kernels.sparse24.packed import mask24, pack, pack_int8, unpack
from vit_jax.types import Array, UserError

__all__ = ["IMPLEMENTATIONS", "mask24", "pack", "pack_int8", "sparse24", "unpack"]

IMPLEMENTATIONS = {
    "mosaic_tpu": mosaic_tpu.IMPLEMENTATION,
    "mosaic_gpu": mosaic_gpu.IMPLEMENTATION,
    "xla": Implementation(xla.run),
}


def sparse24(
    x: Array,
    values: Array,
    index: Array,
    bias: Array | None = None,
    *,
    scale: Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """``(x @ unpack(values, index)) * scale + bias``, accumulated in float32 and rounded once.

    Differentiable in all that is not an integer.

    Args:
      x: ``[..., in]``; its type is the compute type, to which the values are cast (int8 without loss).
      values: ``[in/2, out]`` from :func:`pack` or :func:`pack_int8`.
      index: uint8 ``[ceil(in/8), out]`` from :func:`pack` or :func:`pack_int8`: 2-bit places of the kept weights.
      bias: ``[out]``, or None.
      scale: float32 ``[out]`` of int8 values, or None.
      implementation: a name in :data:`IMPLEMENTATIONS`; None: the first that supports the arguments and is not slower
        than a later one.

    Returns:
      ``[..., out]`` in the type of ``x``.

    Raises:
      UserError: the shapes do not belong together, or no implementation runs them.
    """
    x, values, index = jnp.asarray(x), jnp.asarray(values), jnp.asarray(index)
    size, out = x.shape[-1], values.shape[-1]
    if size % 4 or values.shape != (size // 2, out) or index.shape != (-(-size // 8), out):
        raise UserError(
            f"x with {size} inputs, values {values.shape} and index {index.shape} do not belong together; give values "
            f"[in/2, out] and index [in/8, out] of a kernel with in = {size}, a multiple of 4."
        )
    run = choose("sparse24", IMPLEMENTATIONS, implementation, x, values, index, bias, scale)
    y: jax.Array = run(x, values, index, bias, scale)
    return y
