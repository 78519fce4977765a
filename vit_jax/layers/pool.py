"""From tokens to one vector: cls, gap, map."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.layers.attention import MultiHeadAttention
from vit_jax.layers.linear import DType, logical
from vit_jax.layers.mlp import MLP, Activation
from vit_jax.layers.norm import EPSILON, LayerNorm


class AttentionPool(nn.Module):
    """Multi-head attention pooling: a learned probe attends to the tokens, then an MLP (Zhai et al. 2022).

    Attributes:
      heads: of the attention.
      mlp_dim: hidden size of the MLP.
      dtype: compute type.
      activation: of the MLP.
      norm_epsilon: of the norm before the MLP.
    """

    heads: int
    mlp_dim: int
    dtype: DType = "float32"
    activation: Activation = "gelu"
    norm_epsilon: float = EPSILON

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """``[B, N, D]``, ``mask`` bool ``[B, N]`` or None -> ``[B, D]``."""
        b, _, d = tokens.shape
        init = logical(nn.initializers.xavier_uniform(), (None, None, "embed"))
        probe = self.param("probe", init, (1, 1, d)).astype(self.dtype)
        mask = None if mask is None else mask[:, None, None, :]
        x = MultiHeadAttention(self.heads, dtype=self.dtype, name="attention")(
            jnp.broadcast_to(probe, (b, 1, d)), context=tokens, mask=mask
        )
        y = LayerNorm(self.dtype, self.norm_epsilon, name="norm_mlp")(x)
        return (x + MLP(self.mlp_dim, activation=self.activation, dtype=self.dtype, name="mlp")(y))[:, 0]


def average(tokens: jax.Array) -> jax.Array:
    """Global average ``[B, N, D] -> [B, D]``, summed in float32."""
    return jnp.mean(tokens, axis=1, dtype=jnp.float32).astype(tokens.dtype)
