"""The fields that all towers share, and the stack of blocks they make."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import Depth, Finite, Heads, Rate, Share, Size
from vit_jax.config import resumable
from vit_jax.layers.attention import KVCache, QKVBias
from vit_jax.layers.block import Block, Encoder, Remat, ResidualBlock
from vit_jax.layers.gated import FFNSpec
from vit_jax.layers.hooks import Adapter
from vit_jax.layers.linear import Dense, DType, Spec
from vit_jax.layers.mlp import Activation
from vit_jax.layers.norm import EPSILON, Norm
from vit_jax.layers.rotary import RotarySpec
from vit_jax.layers.saved import Saved
from vit_jax.layers.terms import LogitBiasSpec


def common(source: nn.Module, target: type[nn.Module]) -> dict[str, Any]:
    """The fields of ``source`` that a ``target`` has too, by name."""
    theirs = {f.name for f in dataclasses.fields(target)} - {"parent", "name"}
    return {f.name: getattr(source, f.name) for f in dataclasses.fields(source) if f.name in theirs}


class Layered(nn.Module):
    """Fields of every tower of residual blocks, whatever these are made of.

    Attributes:
      drop_path: stochastic depth rate of the last block; grows linearly from 0.
      dtype: compute type; parameters are float32, logits too.
      scan: run the blocks as one ``lax.scan`` over stacked parameters, which compiles one block instead of ``depth``.
      remat: what the backward pass recomputes instead of keeping: "none" or a name in
        :data:`vit_jax.layers.block.REMAT`.
      saved: as which numbers it keeps what it keeps: "float" as they are, "int8" as eight bits with the range of each
        row, and with gradients of these (:mod:`vit_jax.layers.saved`).
    """

    drop_path: Rate = 0.0
    dtype: DType = "float32"
    scan: bool = resumable(False)
    remat: Remat = resumable("none")
    saved: Saved = "float"

    def stack(self, block: Any, **options: Any) -> Encoder:
        """The encoder of such blocks; ``options`` are fields of :class:`Encoder`, over those of the tower."""
        return Encoder(block=block, **{"stochastic": bool(self.drop_path), **common(self, Encoder), **options})


class Blocks(Layered):
    """Fields of every tower of blocks with MLPs, whether it is one stack of them or several stages.

    Attributes:
      dropout: dropout rate after the embedding of a Transformer, after every residual branch and after the activation
        of MLPs.
      layer_scale: initial value of the learned scale of every residual branch (LayerScale); None for no such scale.
      activation: nonlinearity of the MLPs, attention pooling's included: a name such as "gelu" or a spec such as
        ``topk(24)``.
      norm_epsilon: added to the variance in every layer norm.
      mlp_linear: linear map (dense, or a structured one) of the MLPs' two products; across channels, where there are
        MLPs across tokens too.
      adapter: what the output of every residual branch goes through before it is added; None for nothing.
      ffn: what stands in place of the MLPs across channels: ``gated(align=8)``, with ``activation="silu"`` a SwiGLU;
        None for the two-layer MLP.
    """

    dropout: Rate = 0.0
    layer_scale: Finite | None = None
    activation: Activation = "gelu"
    norm_epsilon: Share = EPSILON
    mlp_linear: Spec = Dense()
    adapter: Adapter | None = None
    ffn: FFNSpec | None = None

    def stack(self, block: Callable[..., nn.Module], **options: Any) -> Encoder:
        """The encoder of such blocks, which get the fields that they share with the tower."""
        stochastic = bool(self.dropout or self.drop_path)
        return super().stack(self.with_fields(block), **{"stochastic": stochastic, **options})

    def with_fields(self, block: Callable[..., nn.Module]) -> Any:
        """``block`` with the fields that it shares with the tower, or one such for every depth."""
        return functools.partial(block, **common(self, ResidualBlock))


class Stack(Blocks):
    """Fields of every tower that is one stack of residual blocks.

    Attributes:
      depth: number of blocks.
      mlp_dim: hidden size of the MLPs.
    """

    depth: Depth = 12
    mlp_dim: Size = 768


class TransformerStack(Stack):
    """Fields of every tower that is a Transformer.

    Attributes:
      heads: number of attention heads; divides the width.
      qkv_linear: linear map (dense, or a structured one) of attention's projections to queries, keys and values.
      out_linear: linear map (dense, or a structured one) of attention's output projection.
      qkv_bias: which of queries, keys and values have a bias in self-attention: all, "qv", or "none" of them.
      qk_norm: norm of the queries and keys of every head, before they turn (Dehghani et al. 2023, arXiv:2302.05442);
        None for none.
      attention: implementation of attention, None picks.
      rotary: positions as a function of queries and keys, ``rope(base=100)``; None for none but those of the embedding.
      logit_bias: a term of self-attention's logits, ``relative(14)``, ``gaussian(3)`` or ``signed``; None for none.
    """

    heads: Heads = 3
    qkv_linear: Spec = Dense()
    out_linear: Spec = Dense()
    qkv_bias: QKVBias = "qkv"
    qk_norm: Norm | None = None
    attention: str | None = None
    rotary: RotarySpec | None = None
    logit_bias: LogitBiasSpec | None = None

    def places(self, x: jax.Array, cache: KVCache | None = None) -> jax.Array | None:
        """Coordinates float32 ``[N, 1]`` of the tokens ``x [B, N, D]`` of a text for ``rotary``; None without it."""
        if self.rotary is None:
            return None
        return (jnp.arange(x.shape[1])[:, None] + (0 if cache is None else cache.start)).astype(jnp.float32)

    def with_fields(self, block: Callable[..., nn.Module] = Block) -> Any:
        """``block`` with the fields that it shares with the tower, or one such for every depth."""
        return functools.partial(block, **common(self, Block), attention_implementation=self.attention)
