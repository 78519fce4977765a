"""From tokens to one vector: cls, gap, map."""

from __future__ import annotations

import functools

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
      heads: number of attention heads.
      mlp_dim: hidden size of the MLP.
      dtype: compute type; parameters are float32.
      activation: nonlinearity of the MLP, a name such as "gelu" or a spec such as ``topk(24)``.
      norm_epsilon: added to the variance in the layer norm before the MLP.
    """

    heads: int
    mlp_dim: int
    dtype: DType = "float32"
    activation: Activation = "gelu"
    norm_epsilon: float = EPSILON

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None, size: jax.Array | None = None) -> jax.Array:
        """``[B, N, D]``, ``mask`` bool and ``size`` float32 ``[B, N]`` or None -> ``[B, D]``."""
        b, _, d = tokens.shape
        init = logical(nn.initializers.xavier_uniform(), (None, None, "embed"))
        probe = self.param("probe", init, (1, 1, d)).astype(self.dtype)
        mask = None if mask is None else mask[:, None, None, :]
        x = MultiHeadAttention(self.heads, dtype=self.dtype, name="attention")(
            jnp.broadcast_to(probe, (b, 1, d)), context=tokens, mask=mask, bias=_proportional(size)
        )
        y = LayerNorm(self.dtype, self.norm_epsilon, name="norm_mlp")(x)
        return (x + MLP(self.mlp_dim, activation=self.activation, dtype=self.dtype, name="mlp")(y))[:, 0]


class QueryPool(nn.Module):
    """Attentional pooler of CoCa (Yu et al. 2022, arXiv:2205.01917, section 3.2): learned queries attend to tokens.

    Attributes:
      queries: number of learned queries.
      width: D of queries and output.
      heads: number of attention heads; divides ``width``.
      dtype: compute type; parameters are float32.
      norm_epsilon: added to the variance in the layer norms of queries and tokens.
    """

    queries: int
    width: int
    heads: int
    dtype: DType = "float32"
    norm_epsilon: float = EPSILON

    @nn.compact
    def __call__(self, tokens: jax.Array, size: jax.Array | None = None) -> jax.Array:
        """``[B, N, C]``, ``size`` float32 ``[B, N]`` or None -> ``[B, queries, width]``."""
        init = logical(nn.initializers.normal(1.0), (None, None, "embed"))
        queries = self.param("queries", init, (1, self.queries, self.width))
        norm = functools.partial(LayerNorm, self.dtype, self.norm_epsilon)
        q = norm(name="norm_queries")(queries)
        q = jnp.broadcast_to(q, (tokens.shape[0], *q.shape[1:]))
        context = norm(name="norm_tokens")(tokens)
        attend = MultiHeadAttention(self.heads, dtype=self.dtype, name="attention")
        return attend(q, context=context, bias=_proportional(size))


def average(tokens: jax.Array, size: jax.Array | None = None) -> jax.Array:
    """Global average ``[B, N, D] -> [B, D]``, summed in float32; weighted by ``size`` float32 ``[B, N]`` if given."""
    if size is None:
        return jnp.mean(tokens, axis=1, dtype=jnp.float32).astype(tokens.dtype)
    total = jnp.sum(tokens.astype(jnp.float32) * size[..., None], axis=1)
    return (total / jnp.sum(size, axis=1, keepdims=True)).astype(tokens.dtype)


def _proportional(size: jax.Array | None) -> jax.Array | None:
    """What makes attention to one token that of as many equal ones, ``[B, 1, 1, N]``."""
    return None if size is None else jnp.log(size)[:, None, None, :]
