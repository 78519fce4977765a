"""CoCa: a contrastive captioner (Yu et al. 2022, arXiv:2205.01917)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import config
from vit_jax.checks import Heads, Range, Size
from vit_jax.layers.attention import KVCache
from vit_jax.layers.block import Block
from vit_jax.layers.linear import logical
from vit_jax.layers.norm import EPSILON, LayerNorm
from vit_jax.layers.pool import QueryPool
from vit_jax.layers.stack import Blocks, TransformerStack
from vit_jax.models.base import Captioner, cast_kernels
from vit_jax.models.roles import Kind, Model, Part
from vit_jax.models.text import real
from vit_jax.models.two_tower import Embedded, TwoTower
from vit_jax.types import Params, UserError

POOLING = ("shared", "cascade", "parallel")


class TextDecoder(TransformerStack, Model):
    """Causal blocks that also attend to the image, from the text tower's states to a state per next token.

    Their width is the text tower's.

    Attributes:
      split: whether a block has a second MLP before its cross-attention, as open_clip's have; the paper's have one MLP.
    """

    heads: Heads = 8
    mlp_dim: Size = 2048
    split: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array, *, train: bool = False, cache: KVCache | None = None
    ) -> jax.Array:
        """``[B, N, D]`` and ``[B, M, C]`` -> ``[B, N, D]``."""
        encoder = self.stack(functools.partial(Block, causal=True), name="encoder")
        return encoder(x, train=train, context=context.astype(self.dtype), cache=cache, at=self.places(x, cache))


class CoCa(TwoTower, Captioner):
    """Two towers and a caption decoder on top of both; one forward pass serves both losses.

    The text tower's states of all but its cls go on, not normalised, to the decoder, which attends to image tokens made
    by attentional pooling.

    Attributes:
      decoder: the caption decoder; its depth, heads and the other fields of :class:`TextDecoder`.
      queries: number of learned queries of the attentional pooling.
      pool_heads: number of attention heads of the attentional pooling.
      pooling: "shared", one pooling whose first query is the image's embedding and whose others are the decoder's
        memory (open_clip); "cascade", the embedding is pooled from the memory (section 4.3, the paper's default);
        "parallel", both are pooled from the image tokens (figure 2).
    """

    decoder: TextDecoder = TextDecoder()
    queries: Annotated[int, Range(1, 2**12)] = 256
    pool_heads: Heads = 8
    pooling: Literal["shared", "cascade", "parallel"] = "shared"

    PARTS: ClassVar[Mapping[str, Part]] = {
        **TwoTower.PARTS,
        **dict.fromkeys(("memory_pool", "embedding_pool", "pool_norm", "vocabulary"), "head"),
    }
    KINDS: ClassVar[Mapping[str, Kind]] = {**TwoTower.KINDS, "vocabulary": "kernel"}

    def setup(self) -> None:
        super().setup()
        config.lookup(dict.fromkeys(POOLING), self.pooling, "pooling")
        tower, text = self.image_tower, self.text_tower
        epsilon = tower.norm_epsilon if isinstance(tower, Blocks) else EPSILON
        if not text.causal:
            raise UserError(
                "the text tower of a CoCa must not see the tokens it is to say; set model.text_tower.causal=True."
            )
        pool = functools.partial(
            QueryPool,
            width=self.embed_dim,
            heads=self.pool_heads,
            dtype=tower.dtype,
            norm_epsilon=epsilon,
        )
        self.memory_pool = pool(self.queries)
        if self.pooling != "shared":
            self.embedding_pool = pool(1)
        self.pool_norm = LayerNorm(tower.dtype, epsilon)
        init = logical(nn.initializers.normal(text.width**-0.5), ("embed", "vocab"))
        self.vocabulary = self.param("vocabulary", init, (text.width, text.vocab_size))

    def __call__(self, image: jax.Array, text: jax.Array, *, train: bool = False) -> Embedded:
        """float32 ``[B, H, W, 3]`` and int32 ``[B, L]`` -> :class:`Embedded` with the decoder's states."""
        embedding, memory = self.encode(image, train=train)
        found = self.text_features(text, train)
        hidden = self.decoder(found.tokens, memory, train=train)
        joint, here = self.joint(found.pooled, "text"), real(text, self.text_tower.end_id)
        return Embedded(embedding, joint, *self.scalars(), hidden, self.vocabulary, here)

    def encode(self, image: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """float32 ``[B, H, W, 3]`` -> embedding float32 ``[B, E]`` and the decoder's memory ``[B, M, E]``."""
        found = self.image_features(image, train)
        pooled = self.memory_pool(found.tokens, found.size)
        if self.pooling == "shared":
            pooled = self.pool_norm(pooled)
            return self.joint(pooled[:, 0], "image"), pooled[:, 1:]
        source = (pooled,) if self.pooling == "cascade" else (found.tokens, found.size)
        return self.joint(self.pool_norm(self.embedding_pool(*source))[:, 0], "image"), pooled

    def embed_image(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """float32 ``[B, H, W, 3]`` -> float32 ``[B, E]`` of unit length."""
        return self.encode(image, train=train)[0]

    @property
    def caption_length(self) -> int:
        return self.text_tower.length + 1

    def decoding_params(self, params: Params) -> Params:
        parts: dict[str, Model] = {"text_tower": self.text_tower, "decoder": self.decoder}
        cast = {name: cast_kernels(part, params[name]) for name, part in parts.items()}
        return {**params, **cast, "vocabulary": params["vocabulary"].astype(self.decoder.dtype)}

    def caption_logits(self, text: jax.Array, memory: jax.Array) -> jax.Array:
        """int32 ``[B, L]`` and the memory -> float32 ``[B, L, V]``; position t is about token t + 1."""
        return self._logits(self.decoder(self.text_features(text, False).tokens, memory))

    def next_logits(self, tokens: jax.Array, memory: jax.Array, *, start: jax.Array | int, length: int) -> jax.Array:
        cache = KVCache(start, length)
        return self._logits(self.decoder(self.text_tower.step(tokens, cache), memory, cache=cache))

    def _logits(self, hidden: jax.Array) -> jax.Array:
        kernel = self.vocabulary.astype(hidden.dtype)
        return jax.lax.dot_general(hidden, kernel, (((2,), (0,)), ((), ())), preferred_element_type=jnp.float32)
