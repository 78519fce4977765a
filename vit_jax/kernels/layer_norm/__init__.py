"""Layer norm (Ba et al. 2016, arXiv:1607.06450), ``(x - mean) / sqrt(variance + epsilon) * scale + bias``.

Its input usually goes on beside it, as the residual branch: where both come from one operation, one gradient adds both.
"""

from __future__ import annotations

import jax

from vit_jax.kernels.dispatch import Implementation, choose
from vit_jax.kernels.layer_norm import mosaic_tpu, xla

IMPLEMENTATIONS = {"mosaic_tpu": mosaic_tpu.IMPLEMENTATION, "xla": Implementation(xla.run)}
"""``mosaic_tpu`` reads its input once, where XLA reads it for the mean, for the variance and for the result."""


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """``x`` as it goes on beside the norm, and ``x`` normalised over its last axis.

    Args:
      x: ``[..., n]``.
      scale: ``[n]`` in the parameter type.
      bias: ``[n]`` in the parameter type.
      epsilon: added to the variance.

    Returns:
      Twice ``[..., n]`` in the type of ``x``, computed in float32 and rounded once. Gradients of the parameters are
      float32 sums in the parameter type.
    """
    run = choose("layer norm", IMPLEMENTATIONS, None, x, scale, bias, epsilon)
    beside, y = run(x, scale, bias, epsilon)
    return beside, y
