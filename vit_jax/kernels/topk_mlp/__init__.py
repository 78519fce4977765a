"""The second map of an MLP of which each token keeps k hidden units (Li et al. 2022, arXiv:2210.06313).

``y = h @ kernel + bias`` where every row of h has at most k units that are not 0, so that at most k rows of the kernel
matter to it. The operation takes h and not what the units are made of: which stay, and their gradient, is the
activation's affair alone (``vit_jax.layers.mlp.TopK``), h serves others too (the share of active units, dropout), and
in h the product is linear, with the dense product's gradients whatever runs.
"""

from __future__ import annotations

import jax

from vit_jax.kernels.dispatch import Implementation, choose
from vit_jax.kernels.topk_mlp import dense, gather, mosaic_tpu
from vit_jax.types import UserError

IMPLEMENTATIONS = {
    "mosaic_tpu": mosaic_tpu.IMPLEMENTATION,
    "gather": Implementation(gather.run, slower_reason=gather.slower_reason),
    "dense": Implementation(dense.run),
}
"""``mosaic_tpu`` reads the rows that any token of a tile needs, ``gather`` each token's rows, ``dense`` all."""


def topk_mlp(
    h: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, k: int, implementation: str | None = None
) -> jax.Array:
    """``h @ kernel + bias``, where rows of ``kernel`` that ``h`` multiplies by 0 may stay unread.

    Args:
      h: ``[..., F]``, at most ``k`` units of each token not 0, which is not checked: of more, any may be left out. Its
        type is the compute type.
      kernel: ``[F, D]`` in the parameter type.
      bias: ``[D]`` in the parameter type, or None.
      k: most units of a token; above F it is F.
      implementation: a name in :data:`IMPLEMENTATIONS`; by default the first that fits.

    Returns:
      ``[..., D]`` in the type of ``h``: operands in that type, sums in float32, rounded once. Gradients are those of
      the dense product, also of units that are 0; of the parameters float32 sums in the parameter type.

    Raises:
      UserError: the shapes do not fit together, ``k`` is no number of units, or the named implementation cannot run.
    """
    if k < 1:
        raise UserError(f"k={k} is not a number of units; give 1 or more.")
    if len(kernel.shape) != 2 or h.shape[-1] != kernel.shape[0]:
        raise UserError(
            f"h with {h.shape[-1]} units and a kernel of shape {kernel.shape} do not belong together; give kernel "
            f"[F, D] with F = {h.shape[-1]}."
        )
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise UserError(f"bias has shape {bias.shape}, the product {kernel.shape[1]} outputs; give {kernel.shape[1:]}.")
    k = min(k, kernel.shape[0])
    run = choose("topk_mlp", IMPLEMENTATIONS, implementation, h, kernel, bias, k=k)
    y: jax.Array = run(h, kernel, bias, k=k)
    return y
