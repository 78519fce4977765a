"""A perceptron of two Monarch maps: ``second(activation(first(x)))``.

The hidden layer is in whatever order suits the two maps, since the activation is elementwise; see
:mod:`vit_jax.kernels.monarch`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from vit_jax.kernels.dispatch import Implementation, choose
from vit_jax.kernels.monarch_mlp import apart, mosaic_tpu
from vit_jax.kernels.monarch_mlp.factors import Factors

IMPLEMENTATIONS = {"mosaic_tpu": mosaic_tpu.IMPLEMENTATION, "apart": Implementation(apart.run)}
"""The first never writes the hidden layer to memory; ``apart`` is one product after the other."""


def monarch_mlp(
    x: jax.Array,
    first: Factors,
    second: Factors,
    activation: Callable[[jax.Array], jax.Array],
    *,
    implementation: str | None = None,
) -> jax.Array:
    """The second map of the activation of the first map of ``x``.

    Args:
      x: ``[..., n]``; its type is the compute type.
      first: of the map into the hidden layer.
      second: of the map out of it. Its blocks fall into as many equal parts as the first map has blocks.
      activation: elementwise and differentiable, of float32.
      implementation: a name in :data:`IMPLEMENTATIONS`; by default the first that fits.

    Returns:
      ``[..., outputs]`` in the type of ``x``, natural order. Gradients of the parameters are float32 sums in the
      parameter type.

    Raises:
      UserError: the shapes do not fit together.
    """
    run = choose("MLP of Monarch maps", IMPLEMENTATIONS, implementation, x, first, second, activation)
    y: jax.Array = run(x, first, second, activation)
    return y
