"""Products with block-diagonal matrices: contiguous parts of the input, each with a dense map of its own.

``y[k * out + o] = sum_i x[k * in + i] kernel[k, i, o] + bias[k * out + o]``: 1/n of the weights and of the arithmetic
of a dense map. The factors of Monarch matrices (arXiv:2204.00595) and the gated MLPs of Monarch Mixer
(arXiv:2310.12109) are such products.
"""

from __future__ import annotations

import jax

from vit_jax.kernels.block_diagonal import dense, mosaic_tpu, xla
from vit_jax.kernels.dispatch import Implementation, choose
from vit_jax.types import UserError

IMPLEMENTATIONS = {
    "mosaic_tpu": mosaic_tpu.IMPLEMENTATION,
    "xla": Implementation(xla.run, slower_reason=xla.slower_reason),
    "dense": Implementation(dense.run),
}
"""``mosaic_tpu`` reads and writes blocks in place, ``xla`` cuts x into them, ``dense`` fills up with zeros."""


def block_diagonal(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, implementation: str | None = None
) -> jax.Array:
    """``x`` times the matrix with the blocks of ``kernel`` on its diagonal, plus ``bias``.

    Args:
      x: ``[..., n * in]``; its type is the compute type.
      kernel: ``[n, in, out]`` in the parameter type.
      bias: ``[n * out]`` in the parameter type, or None.
      implementation: a name in :data:`IMPLEMENTATIONS`; by default the first that fits.

    Returns:
      ``[..., n * out]`` in the type of ``x``: operands in that type, sums in float32, rounded once. Gradients of the
      parameters are float32 sums in the parameter type.

    Raises:
      UserError: the shapes do not fit together, or the named implementation cannot run them.
    """
    if len(kernel.shape) != 3 or x.shape[-1] != kernel.shape[0] * kernel.shape[1]:
        raise UserError(
            f"x with {x.shape[-1]} features and a kernel of shape {kernel.shape} do not belong together; give kernel "
            f"[n, in, out] with n * in = {x.shape[-1]}."
        )
    outputs = kernel.shape[0] * kernel.shape[2]
    if bias is not None and bias.shape != (outputs,):
        raise UserError(f"bias has shape {bias.shape}, the product {outputs} outputs; give ({outputs},).")
    run = choose("block-diagonal product", IMPLEMENTATIONS, implementation, x, kernel, bias)
    y: jax.Array = run(x, kernel, bias)
    return y


def to_dense(kernel: jax.Array) -> jax.Array:
    """``[n, in, out] -> [n * in, n * out]``, the weight with which ``x @ weight`` is the product."""
    return dense.weight(kernel)
