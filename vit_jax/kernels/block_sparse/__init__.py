"""Products with matrices of which only some square blocks are not zero.

The input is in blocks of b, the output too, and each block of outputs reads the same number ``per`` of input blocks:

    y[j] = sum_t x[index[j, t]] @ kernel[t, :, j] + bias[j]       x [in / b, b], kernel [per, b, out / b, b]

so that ``kernel [per, b, out]`` is a dense weight from whose every column the inputs that are not read are left out. An
example with blocks of one, ``x [3] -> y [2]``, index [[0, 2], [1, 2]] and kernel [[[3, 4]], [[5, 6]]]:

    y = [3 x0 + 5 x2, 4 x1 + 6 x2]

The index is either a NumPy array, known when the program is compiled (:mod:`.patterns`), or a JAX array that is
computed by it, as when the mask follows from magnitudes. No implementation multiplies blocks that are not there, but
``dense``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.kernels.block_sparse import crossover, dense, mosaic_tpu, xla
from vit_jax.kernels.dispatch import Implementation, choose
from vit_jax.types import Array, UserError

IMPLEMENTATIONS = {
    "mosaic_tpu": mosaic_tpu.IMPLEMENTATION,
    "xla": Implementation(xla.run, slower_reason=crossover.dense_is_faster),
    "dense": Implementation(dense.run),
}
"""``mosaic_tpu`` reads only the blocks there are, ``xla`` gathers inputs for plain products, ``dense`` writes zeros."""


def block_sparse(
    x: Array, kernel: Array, index: Array, bias: Array | None = None, *, implementation: str | None = None
) -> jax.Array:
    """``x`` times the block-sparse matrix, plus ``bias``.

    Args:
      x: ``[..., in]``; its type is the compute type.
      kernel: ``[per, b, out]`` in the parameter type, b dividing in and out.
      index: int32 ``[out / b, per]``, input blocks in 0 .. in / b - 1. What a JAX array holds beyond is undefined.
      bias: ``[out]``, or None.
      implementation: a name in :data:`IMPLEMENTATIONS`; None: the first of this platform that is of use.

    Returns:
      ``[..., out]`` in the type of ``x``: operands in that type, sums in float32, rounded once. Gradients of kernel and
      bias are float32 sums in the parameter type; blocks that are not there have none.

    Raises:
      UserError: the shapes do not belong together, or the index leaves the input.
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    index = index if isinstance(index, np.ndarray | jax.Array) else np.asarray(index)
    _check(x, kernel, index, bias)
    rows = jnp.reshape(x, (-1, x.shape[-1]))
    bias = None if bias is None else jnp.asarray(bias)
    run = choose("block-sparse product", IMPLEMENTATIONS, implementation, rows, kernel, index, bias)
    return jnp.reshape(run(rows, kernel, index, bias), (*x.shape[:-1], kernel.shape[-1]))


def to_dense(kernel: Array, index: Array, inputs: int) -> jax.Array:
    """The weight ``[inputs, out]``, in the kernel's type, with which ``x @ weight`` is the product."""
    return dense.weight(jnp.asarray(kernel), index, inputs)


def _check(x: jax.Array, kernel: jax.Array, index: Array, bias: Array | None) -> None:
    size = x.shape[-1]
    if kernel.ndim != 3 or 0 in kernel.shape or size % kernel.shape[1] or kernel.shape[2] % kernel.shape[1]:
        raise UserError(
            f"x with {size} inputs and a kernel of shape {kernel.shape} do not belong together; give kernel "
            "[per, b, out] with b dividing inputs and outputs."
        )
    per, b, out = kernel.shape
    if index.shape != (out // b, per) or not jnp.issubdtype(index.dtype, jnp.integer):
        raise UserError(
            f"a kernel of shape {kernel.shape} needs an integer index [out / b, per] = {(out // b, per)}; this one is "
            f"{index.dtype} {index.shape}."
        )
    if bias is not None and bias.shape != (out,):
        raise UserError(f"bias has shape {bias.shape}, the product {out} outputs; give ({out},).")
    if isinstance(index, np.ndarray) and (index.min() < 0 or index.max() >= size // b):
        raise UserError(
            f"the index goes from {index.min()} to {index.max()}, and {size} inputs are blocks 0 to {size // b - 1}; "
            "give one made for this input."
        )
