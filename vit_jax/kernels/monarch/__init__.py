"""Products with Monarch matrices: two block-diagonal factors with fixed permutations (arXiv:2204.00595, section 3).

The convention is that of the published code (HazyResearch/fly, ``blockdiag_butterfly_multiply``). With kernel_1
``[k, q, p]`` and kernel_2 ``[l, s, r]``, ``n = k * p`` and ``l * r = k * q``:

    y1[k, q] = sum_p kernel_1[k, q, p] * x[k, p]        x [n] read as (k, p)
    z[l, r]  = y1 read as (r, l), the index l fastest
    y[s, l]  = sum_r kernel_2[l, s, r] * z[l, r]        y [s * l], the index l fastest

A worked example with all sizes 2, so that ``x [4] -> y [4]``:

    kernel_1 = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]     kernel_2 = [[[1, 0], [2, 1]], [[0, 1], [1, 1]]]
    x  = [1, 0, 0, 1]
    y1 = [1, 3, 6, 8]                                   block 0 on (1, 0), block 1 on (0, 1)
    z  = [[1, 6], [3, 8]]                               l = 0 takes y1[0], y1[2]; l = 1 takes y1[1], y1[3]
    kernel_2[0] z[0] = [1, 8], kernel_2[1] z[1] = [8, 11], interleaved y = [1, 8, 8, 11]

Here q is always a multiple of l, ``q = t * l``, and so ``r = k * t``: every block of the first factor gives t values to
every block of the second. Once the rows of kernel_1 are reordered from (t, l) to (l, t), these are contiguous chunks,
and no activation is permuted but the output, whose blocks are interleaved. That too commutes with whatever is
elementwise, so ``blocked`` leaves it out and ``input_parts`` of the next map takes it in, by reordering the columns of
its kernel_1.

The parameters are the same whatever runs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax.kernels.dispatch import Implementation, choose
from vit_jax.kernels.monarch import crossover, dense, mosaic_gpu, mosaic_tpu, xla
from vit_jax.kernels.monarch.layout import Sizes

IMPLEMENTATIONS = {
    "mosaic_tpu": mosaic_tpu.IMPLEMENTATION,
    "mosaic_gpu": mosaic_gpu.IMPLEMENTATION,
    "xla": Implementation(xla.run, slower_reason=crossover.dense_is_faster),
    "dense": Implementation(dense.run),
}
"""The first two keep the intermediate on the chip, ``xla`` writes it once, ``dense`` multiplies the weight out."""


def monarch(
    x: jax.Array,
    kernel_1: jax.Array,
    kernel_2: jax.Array,
    bias: jax.Array | None = None,
    *,
    input_parts: int = 1,
    blocked: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """``x`` times the Monarch matrix of the two factors, plus ``bias``.

    Args:
      x: ``[..., n]``; its type is the compute type.
      kernel_1: ``[k, q, p]`` with ``k * p = n``, in the parameter type.
      kernel_2: ``[l, s, r]`` with ``l * r = k * q`` and l dividing q, in the parameter type.
      bias: ``[l * s]`` in natural order, or None.
      input_parts: x comes blocked in so many parts: natural index ``a * input_parts + j`` at
        ``j * (n / input_parts) + a``. The l of a blocked map before; must divide p.
      blocked: leave the output in blocked order, ``s * l + i`` at ``i * s_count + s``.
      implementation: a name in :data:`IMPLEMENTATIONS`; by default the first that fits.

    Returns:
      ``[..., l * s]`` in the type of ``x``: operands in that type, sums in float32, the intermediate rounded once to
      it. Gradients of the parameters are float32 sums in the parameter type.

    Raises:
      UserError: the shapes do not fit together.
    """
    sizes = Sizes.of(x.shape[-1], kernel_1, kernel_2, bias, input_parts)
    options = {"input_parts": input_parts, "blocked": blocked}
    run = choose("Monarch product", IMPLEMENTATIONS, implementation, x, kernel_1, kernel_2, bias, **options)
    y: jax.Array = run(x, kernel_1, kernel_2, bias, **options)
    return jnp.reshape(y, (*x.shape[:-1], sizes.outputs))


def to_dense(kernel_1: jax.Array, kernel_2: jax.Array) -> jax.Array:
    """The weight ``[n, l * s]``, float32, with which ``x @ weight`` is the Monarch product."""
    sizes = Sizes.of(kernel_1.shape[0] * kernel_1.shape[-1], kernel_1, kernel_2, None, 1)
    return dense.weight(sizes, kernel_1, kernel_2, blocked=False)
