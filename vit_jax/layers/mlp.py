"""The two-layer perceptron and its activations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import config, sharding
from vit_jax.layers.linear import Dense, DType, LinearSpec
from vit_jax.layers.stochastic import dropout

Activation = Literal["gelu", "gelu_tanh", "relu", "quick_gelu"]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
"""By name, on float32. ``gelu`` is exact (erf), ``gelu_tanh`` Flax's default, ``quick_gelu`` OpenAI CLIP's."""


def _activate(name: str, x: jax.Array) -> jax.Array:
    function = config.lookup(ACTIVATIONS, name, "activation")
    return function(x.astype(jnp.float32)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activate(name: str, x: jax.Array) -> jax.Array:
    """Activation ``name`` of ``x``, computed in float32, in the type of ``x``; the backward keeps only ``x``."""
    return _activate(name, x)


activate.defvjp(
    lambda name, x: (_activate(name, x), x),
    lambda name, x, g: jax.vjp(functools.partial(_activate, name), x)[1](g),
)


class MLP(nn.Module):
    """``mlp_in``, activation, dropout, ``mlp_out``: ``[..., D] -> [..., D]``.

    Attributes:
      hidden: size in the middle.
      linear: spec of both maps.
      activation: name in :data:`ACTIVATIONS`.
      dropout: rate after the activation.
      dtype: compute type.
    """

    hidden: int
    linear: LinearSpec = Dense()
    activation: Activation = "gelu"
    dropout: float = 0.0
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        kwargs: dict[str, Any] = {"dtype": self.dtype, "bias_init": nn.initializers.normal(1e-6)}
        h = self.linear(self.hidden, name="mlp_in", axes=("embed", "mlp"), **kwargs)(x)
        h = activate(self.activation, sharding.constrain(h, "batch", *[None] * (h.ndim - 2), "mlp"))
        h = dropout(h, self.dropout, key)
        return self.linear(x.shape[-1], name="mlp_out", axes=("mlp", "embed"), **kwargs)(h)
