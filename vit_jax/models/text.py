"""Text Transformers, causal or bidirectional, from the one block."""

from __future__ import annotations

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import config
from vit_jax.checks import Heads, Range, Size
from vit_jax.layers.attention import KVCache
from vit_jax.layers.block import Block
from vit_jax.layers.embed import PositionEmbedding, TokenEmbed
from vit_jax.layers.linear import logical
from vit_jax.layers.norm import LayerNorm
from vit_jax.layers.pool import AttentionPool
from vit_jax.layers.stack import TransformerStack
from vit_jax.layers.stochastic import dropout
from vit_jax.models.base import Features
from vit_jax.models.roles import Model

Pool = Literal["end", "cls", "last", "first", "gap", "map"]
POOLS = ("end", "cls", "last", "first", "gap", "map")


class TextTransformer(TransformerStack, Model):
    """Tokens to features; the objective sets the first four fields from the tokenizer.

    Attributes:
      vocab_size: number of tokens V in the vocabulary.
      length: longest text in tokens.
      end_id: the token that ends a text.
      pad_id: the token that fills up; nothing here depends on it, but other projects ask for it.
      width: channels D of a token.
      causal: whether a token attends only to itself and the tokens before it.
      pool: the end token's state (Radford et al. 2021, section 2.4), that of a learned "cls" appended to the text,
        which sees no padding (Yu et al. 2022, section 3.2), the "last" or "first" position, "gap" (average of the text)
        or "map" (attention pooling). Nothing masks padding for the others, as in SigLIP.
      cls_mask: what "cls" sees: the "text" and itself, or "shifted" by one position, the mistake that the published
        open_clip CoCa weights were trained with (open_clip issue 549).
    """

    vocab_size: Annotated[int, Range(2, 2**22)] = 49408
    length: Annotated[int, Range(1, 2**16)] = 77
    end_id: Annotated[int, Range(0, 2**22)] = 49407
    pad_id: Annotated[int, Range(0, 2**22)] = 0
    width: Size = 512
    heads: Heads = 8
    mlp_dim: Size = 2048
    causal: bool = True
    pool: Pool = "end"
    cls_mask: Literal["text", "shifted"] = "text"

    def setup(self) -> None:
        config.lookup(dict.fromkeys(POOLS), self.pool, "pool of the text tower")
        self.token = TokenEmbed(self.vocab_size, self.width, self.dtype)
        self.position = PositionEmbedding(self.dtype, self.length + self._has_cls)
        if self._has_cls:
            self.cls = self.param(
                "cls", logical(nn.initializers.normal(0.01), (None, None, "embed")), (1, 1, self.width)
            )
        self.encoder = self.stack(Block, final_norm=not self._has_cls)
        if self._has_cls:  # the tokens go on to a decoder without a norm, which has its own
            self.norm = LayerNorm(self.dtype, self.norm_epsilon)
        if self.pool == "map":
            self.map = AttentionPool(self.heads, self.mlp_dim, self.dtype, self.activation, self.norm_epsilon)

    def __call__(self, text: jax.Array, *, train: bool = False) -> Features:
        """int32 ``[B, L]`` -> tokens ``[B, L, D]``, normed unless there is a cls, and pooled float32 ``[B, D]``."""
        x, mask = self.token(text), None
        if self._has_cls:
            cls = jnp.broadcast_to(self.cls.astype(x.dtype), (x.shape[0], 1, self.width))
            x, mask = jnp.concatenate([x, cls], axis=1), self._cls_mask(text)
        x = self.position(x)
        if train and self.dropout:
            x = dropout(x, self.dropout, self.make_rng("dropout"))
        x = self.encoder(x, train=train, mask=mask, at=self.places(x))
        if self._has_cls:
            return Features(x[:, :-1], self.norm(x[:, -1]).astype(jnp.float32))
        return Features(x, self._pool(x, text).astype(jnp.float32))

    def step(self, tokens: jax.Array, cache: KVCache) -> jax.Array:
        """States ``[B, N, D]`` of the tokens int32 ``[B, N]`` at ``cache.start`` on, given those before."""
        x = self.position(self.token(tokens), cache.start)
        return self.encoder(x, cache=cache, at=self.places(x, cache))

    @property
    def _has_cls(self) -> bool:
        return self.pool == "cls"

    def _cls_mask(self, text: jax.Array) -> jax.Array:
        """bool ``[B, 1, L + 1, L + 1]``: tokens see what causality lets them, cls no padding."""
        b, n = text.shape
        here, there = real(text, self.end_id), jnp.ones((b, 1), bool)
        keys = [here, there] if self.cls_mask == "text" else [there, here]
        cls = jnp.concatenate(keys, axis=1)[:, None, None]
        return jnp.concatenate([jnp.ones((b, 1, n, n + 1), bool), cls], axis=2)

    def _pool(self, x: jax.Array, text: jax.Array) -> jax.Array:
        if self.pool == "end":
            return jnp.take_along_axis(x, jnp.argmax(text == self.end_id, axis=1)[:, None, None], axis=1)[:, 0]
        if self.pool == "map":
            return self.map(x)
        if self.pool == "gap":
            keep = real(text, self.end_id)[..., None].astype(jnp.float32)
            return jnp.sum(x * keep, axis=1) / jnp.maximum(jnp.sum(keep, axis=1), 1.0)
        return x[:, -1] if self.pool == "last" else x[:, 0]


def real(text: jax.Array, end_id: int) -> jax.Array:
    """bool ``[B, L]``: True up to the first end token, which is included; what follows is padding, whatever its id."""
    end = (text == end_id).astype(jnp.int32)
    return jnp.cumsum(end, axis=1) - end == 0
