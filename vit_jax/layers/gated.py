"""Gated MLPs (Shazeer 2020, arXiv:2002.05202): SwiGLU with ``activation="silu"``, GeGLU with "gelu"."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax

from vit_jax import config, sharding
from vit_jax.checks import Checked, Share, Size
from vit_jax.layers.hooks import MLPSpec
from vit_jax.layers.linear import Dense, DType, LinearSpec
from vit_jax.layers.mlp import Activation, activate
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.stochastic import dropout


class GatedMLP(nn.Module):
    """``mlp_out(norm(activation(mlp_gate(x)) * mlp_in(x)))``: ``[..., D] -> [..., D]``.

    Attributes:
      hidden: size of the hidden layer, of gate and value each.
      linear: linear map (dense, or a structured one) of the three products.
      activation: nonlinearity of the gate.
      dropout: dropout rate after the product of gate and value.
      dtype: compute type; parameters are float32.
      norm_epsilon: added to the variance in a layer norm of the hidden layer; None for no such norm.
    """

    hidden: int
    linear: LinearSpec = Dense()
    activation: Activation = "silu"
    dropout: float = 0.0
    dtype: DType = "float32"
    norm_epsilon: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        kwargs: dict[str, Any] = {"dtype": self.dtype, "bias_init": nn.initializers.normal(1e-6)}
        into = (self.linear(self.hidden, name=name, axes=("embed", "mlp"), **kwargs) for name in ("mlp_gate", "mlp_in"))
        gate, h = (sharding.constrain(y(x), "batch", *[None] * (x.ndim - 2), "mlp") for y in into)
        h = dropout(activate(self.activation, gate) * h, self.dropout, key)
        if self.norm_epsilon is not None:
            h = LayerNorm(self.dtype, self.norm_epsilon, name="norm")(h)
        return self.linear(x.shape[-1], name="mlp_out", axes=("mlp", "embed"), **kwargs)(h)


@dataclasses.dataclass(frozen=True)
class Gated(Checked):
    """A :class:`GatedMLP` in place of the MLP.

    Attributes:
      align: two thirds of ``mlp_dim``, rounded up to a multiple of this, are the hidden layer: with three maps as many
        parameters as the MLP's two (8 and, in its 7B, 64 in DINOv3); None takes ``mlp_dim`` as it is.
      norm_epsilon: added to the variance in a layer norm of the hidden layer, as EVA-02 has (Fang et al. 2023,
        arXiv:2303.11331); None for no such norm.
    """

    align: Size | None = None
    norm_epsilon: Share | None = None

    def hidden(self, mlp_dim: int) -> int:
        """Size of the hidden layer."""
        return mlp_dim if self.align is None else -(-int(mlp_dim * 2 / 3) // self.align) * self.align

    def __call__(self, hidden: int, **fields: Any) -> GatedMLP:
        return GatedMLP(self.hidden(hidden), norm_epsilon=self.norm_epsilon, **fields)


FFNS = {"gated": Gated}
FFNSpec = Annotated[MLPSpec, config.Choice(FFNS, MLPSpec)]
"""Type of a module's field that holds a :class:`~vit_jax.layers.hooks.MLPSpec`."""
