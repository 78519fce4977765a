"""Vision Transformers (Dosovitskiy et al. 2021, arXiv:2010.11929) and their hybrids (AugReg, arXiv:2106.10270)."""

from __future__ import annotations

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import config
from vit_jax.layers.block import Block, Encoder, Remat
from vit_jax.layers.embed import PatchEmbed, PositionEmbedding, sincos_positions
from vit_jax.layers.linear import Dense, DType, Linear, logical
from vit_jax.layers.linear.specs import Spec
from vit_jax.layers.mlp import Activation
from vit_jax.layers.norm import EPSILON, LayerNorm
from vit_jax.layers.pool import AttentionPool, average
from vit_jax.layers.stochastic import dropout
from vit_jax.models.base import Features, ImageModel
from vit_jax.models.resnet import Numerics, ResNet

POOLS = ("cls", "gap", "map", "cls_gap")
POSITIONS = ("learn", "sincos2d")


class ViT(ImageModel):
    """Vision Transformer.

    Attributes:
      patch: side of a patch, in pixels (of the feature map where there is a ``stem``).
      width: channels D of a token.
      depth: number of blocks.
      heads: number of attention heads; divides ``width``.
      mlp_dim: hidden size of the MLPs.
      pool: "cls" token, "gap" (average of the grid), "map" (attention pooling) or "cls_gap" (cls beside the average:
        2D features, as the linear classifiers of DINOv2 see, Oquab et al. 2024, arXiv:2304.07193).
      positions: "learn" or "sincos2d" (fixed).
      patch_bias: whether the patch embedding has a bias.
      pre_norm: a layer norm before the first block, as CLIP has (Radford et al. 2021).
      final_norm: a layer norm after the last block.
      registers: extra learned tokens without position (Darcet et al. 2024, arXiv:2309.16588).
      pre_logits: size of a tanh layer before the head, None for none.
      stem: bottlenecks per stage of a ResNetV2 before the patches, None for no stem.
      stem_numerics: whose epsilons the stem has, a name in :data:`vit_jax.models.resnet.NUMERICS`.
      dropout: dropout rate after the embedding, every residual branch and the MLP's activation.
      drop_path: stochastic depth rate of the last block; grows linearly from 0.
      layer_scale: initial value of the learned scale of every residual branch (LayerScale); None for no such scale.
      activation: nonlinearity of the MLPs, attention pooling's included: a name such as "gelu" or a spec such as
        ``topk(24)``.
      norm_epsilon: added to the variance in every layer norm.
      qkv_linear: linear map (dense, or a structured one) of attention's projections to queries, keys and values.
      out_linear: linear map (dense, or a structured one) of attention's output projection.
      mlp_linear: linear map (dense, or a structured one) of the MLPs' two products.
      dtype: compute type; parameters are float32, logits too.
      scan: run the blocks as one ``lax.scan`` over stacked parameters, which compiles one block instead of ``depth``.
      remat: what the backward pass recomputes instead of keeping: "none" or a name in
        :data:`vit_jax.layers.block.REMAT`.
      attention: implementation of attention, None picks.
    """

    patch: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_dim: int = 768
    pool: Literal["cls", "gap", "map", "cls_gap"] = "cls"
    positions: Literal["learn", "sincos2d"] = "learn"
    patch_bias: bool = True
    pre_norm: bool = False
    final_norm: bool = True
    registers: int = 0
    pre_logits: int | None = None
    stem: tuple[int, ...] | None = None
    stem_numerics: Numerics = "original"
    dropout: float = 0.0
    drop_path: float = 0.0
    layer_scale: float | None = None
    activation: Activation = "gelu"
    norm_epsilon: float = EPSILON
    qkv_linear: Spec = Dense()
    out_linear: Spec = Dense()
    mlp_linear: Spec = Dense()
    dtype: DType = "float32"
    scan: bool = False
    remat: Remat = "none"
    attention: str | None = None

    def encode(self, image: jax.Array, train: bool) -> Features:
        config.lookup(dict.fromkeys(POOLS), self.pool, "pool")
        config.lookup(dict.fromkeys(POSITIONS), self.positions, "positions")
        x = self._embed(image)
        if self.pre_norm:
            x = LayerNorm(self.dtype, self.norm_epsilon, name="norm_pre")(x)
        if train and self.dropout:
            x = dropout(x, self.dropout, self.make_rng("dropout"))
        block = functools.partial(
            Block,
            heads=self.heads,
            mlp_dim=self.mlp_dim,
            dropout=self.dropout,
            layer_scale=self.layer_scale,
            activation=self.activation,
            qkv_linear=self.qkv_linear,
            out_linear=self.out_linear,
            mlp_linear=self.mlp_linear,
            dtype=self.dtype,
            norm_epsilon=self.norm_epsilon,
            attention_implementation=self.attention,
        )
        encoder = Encoder(
            self.depth,
            block,
            drop_path=self.drop_path,
            stochastic=bool(self.dropout or self.drop_path),
            scan=self.scan,
            remat=self.remat,
            dtype=self.dtype,
            norm_epsilon=self.norm_epsilon,
            final_norm=self.final_norm,
            name="encoder",
        )
        tokens = encoder(x, train=train)
        pooled = self._pool(tokens)
        if self.pre_logits is not None:
            pooled = Linear(self.pre_logits, ("embed", "mlp"), name="pre_logits")(pooled.astype(jnp.float32))
            pooled = jnp.tanh(pooled)
        return Features(tokens, pooled)

    def _embed(self, image: jax.Array) -> jax.Array:
        """``[B, H, W, C] -> [B, N, D]``: cls, registers, grid; only cls and grid have positions."""
        if self.stem is not None:
            image = ResNet(self.stem, dtype=self.dtype, numerics=self.stem_numerics, name="stem")(image)
        grid = PatchEmbed(self.patch, self.width, self.dtype, self.patch_bias, name="patch")(image)
        b, h, w, d = grid.shape
        x = grid.reshape(b, h * w, d)
        if self.positions == "sincos2d":
            x += jnp.asarray(sincos_positions(h, w, d)[None], x.dtype)
        if self._has_cls():
            x = jnp.concatenate([self._tokens("cls", nn.initializers.zeros, 1, b), x], axis=1)
        if self.positions == "learn":
            x = PositionEmbedding(self.dtype, name="position")(x)
        if self.registers:
            extra = self._tokens("registers", nn.initializers.normal(0.02), self.registers, b)
            x = jnp.concatenate([x[:, : -h * w], extra, x[:, -h * w :]], axis=1)
        return x

    def _tokens(self, name: str, init: Any, count: int, batch: int) -> jax.Array:
        init = logical(init, (None, None, "embed"))
        tokens = self.param(name, init, (1, count, self.width)).astype(self.dtype)
        return jnp.broadcast_to(tokens, (batch, count, self.width))

    def _has_cls(self) -> bool:
        return self.pool in ("cls", "cls_gap")

    def _pool(self, tokens: jax.Array) -> jax.Array:
        if self.pool == "cls":
            return tokens[:, 0]
        if self.pool == "map":
            pool = AttentionPool(self.heads, self.mlp_dim, self.dtype, self.activation, self.norm_epsilon, name="pool")
            return pool(tokens)
        grid = average(tokens[:, self._has_cls() + self.registers :])
        return grid if self.pool == "gap" else jnp.concatenate([tokens[:, 0], grid], axis=-1)


def _size(width: int, depth: int, heads: int, mlp_dim: int) -> dict[str, int]:
    return {"width": width, "depth": depth, "heads": heads, "mlp_dim": mlp_dim}


SIZES = {
    "ti": _size(192, 12, 3, 768),
    "s": _size(384, 12, 6, 1536),
    "b": _size(768, 12, 12, 3072),
    "l": _size(1024, 24, 16, 4096),
    "h": _size(1280, 32, 16, 5120),
    "g": _size(1408, 40, 16, 6144),
    "G": _size(1664, 48, 16, 8192),
    "so400m": _size(1152, 27, 16, 4304),
}
"""Touvron et al. 2021 (Ti, S), Dosovitskiy et al. 2021 table 1 (B, L, H), Zhai et al. 2022 table 2 (g, G),
Alabdulmohsin et al. 2023, arXiv:2305.13035 (So400m)."""

PATCHES = {
    "ti": (16,),
    "s": (8, 14, 16, 32),
    "b": (8, 14, 16, 32),
    "l": (14, 16, 32),
    "h": (14, 16),
    "g": (14, 16),
    "G": (14,),
    "so400m": (14, 16),
}

VARIANTS: dict[str, dict[str, Any]] = {
    f"vit_{size}{patch}": {**SIZES[size], "patch": patch} for size, patches in PATCHES.items() for patch in patches
} | {
    "vit_r_ti16": {**SIZES["ti"], "patch": 8, "stem": ()},
    "vit_r26_s32": {**SIZES["s"], "patch": 1, "stem": (2, 2, 2, 2)},
    "vit_r26_b32": {**SIZES["b"], "patch": 1, "stem": (2, 2, 2, 2)},
    "vit_r50_b16": {**SIZES["b"], "patch": 1, "stem": (3, 4, 9)},
    "vit_r50_l32": {**SIZES["l"], "patch": 1, "stem": (3, 4, 6, 3)},
}
"""Name -> fields of :class:`ViT`; a hybrid's name gives the total stride, its ``patch`` counts on the stem's grid."""
