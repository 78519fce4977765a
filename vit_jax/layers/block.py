"""The pre-norm transformer block and the encoder that stacks it: for images, text and decoders alike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import config, sharding
from vit_jax.layers.attention import KVCache, MultiHeadAttention, QKVBias
from vit_jax.layers.hooks import Adapter, Attended, LogitBias, MLPSpec, Rotary, Tokens
from vit_jax.layers.linear import Dense, DType, LinearSpec, logical
from vit_jax.layers.mlp import MLP, Activation
from vit_jax.layers.norm import EPSILON, LayerNorm, Norm
from vit_jax.layers.saved import SAVED, Saved
from vit_jax.layers.stochastic import drop_path, dropout
from vit_jax.types import UserError

Remat = Literal["none", "full", "dots", "dots_no_batch"]
REMAT: dict[str, Any] = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What the backward pass of a block may keep: nothing, every product, every product with a weight."""


class ResidualBlock(nn.Module):
    """What all blocks share: ``x + drop_path(layer_scale(dropout(branch(norm(x)))))``.

    Attributes:
      mlp_dim: hidden size of the MLP.
      mlp_linear: linear map (dense, or a structured one) of the MLP's two products.
      activation: nonlinearity of the MLP, a name such as "gelu" or a spec such as ``topk(24)``.
      dropout: dropout rate after every residual branch and inside the MLP.
      layer_scale: initial value of the residual branches' learned scale (Touvron et al. 2021, arXiv:2103.17239); None
        for no such scale.
      dtype: compute type; parameters are float32.
      norm_epsilon: added to the variance in the layer norms.
      adapter: what the output of every residual branch goes through; None for nothing.
      ffn: what stands in place of the MLP; None for the two-layer :class:`MLP`.
    """

    mlp_dim: int
    mlp_linear: LinearSpec = Dense()
    activation: Activation = "gelu"
    dropout: float = 0.0
    layer_scale: float | None = None
    dtype: DType = "float32"
    norm_epsilon: float = EPSILON
    adapter: Adapter | None = None
    ffn: MLPSpec | None = None

    def branch(
        self, x: jax.Array, name: str, run: Callable[..., jax.Array], key: jax.Array | None, rate: Any
    ) -> jax.Array:
        """Adds the branch ``run(normalised x, key)``; ``rate`` is its stochastic depth, None for never."""
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        beside: list[jax.Array] = []
        y = run(LayerNorm(self.dtype, self.norm_epsilon, name=f"norm_{name}")(x, beside=beside.append), keys[0])
        return self.add(beside[0], name, y, keys[1:], rate)

    def add(self, x: jax.Array, name: str, y: jax.Array, keys: Sequence[jax.Array | None], rate: Any) -> jax.Array:
        """``x`` plus what a branch made of it, ``y``; ``keys`` of dropout and of stochastic depth, ``rate`` its own."""
        y = self.output(name, y, keys, rate)
        # A TPU adds in float32 anyhow: asked for it, XLA makes a fusion of the sum, of two thirds of the cycles.
        total = x.astype(jnp.float32) + y.astype(jnp.float32)
        return sharding.constrain(total.astype(x.dtype), "batch", None, None)

    def output(self, name: str, y: jax.Array, keys: Sequence[jax.Array | None], rate: Any) -> jax.Array:
        """What a branch gives, adapted, dropped out and scaled; arguments as of :meth:`add`."""
        if self.adapter is not None:
            y = self.adapter(name=f"adapter_{name}")(y)
        y = dropout(y, self.dropout, keys[0])
        if self.layer_scale is not None:
            init = logical(nn.initializers.constant(self.layer_scale), ("embed",))
            scale = self.param(f"scale_{name}", init, y.shape[-1:]).astype(y.dtype)
            y *= jax.lax.broadcast_in_dim(scale, y.shape, (y.ndim - 1,))
        if rate is not None:
            y = drop_path(y, rate, keys[1])
        return y

    def mlp(self, x: jax.Array, key: jax.Array | None, name: str = "mlp", hidden: int | None = None) -> jax.Array:
        """The channel MLP, of ``mlp_dim`` hidden units if not told otherwise."""
        fields: dict[str, Any] = {"activation": self.activation, "dropout": self.dropout, "dtype": self.dtype}
        return (self.ffn or MLP)(hidden or self.mlp_dim, linear=self.mlp_linear, **fields, name=name)(x, key=key)


class Block(ResidualBlock):
    """Self-attention, cross-attention if there is a context, MLP (Vaswani et al. 2017; pre-norm).

    Attributes:
      heads: number of attention heads.
      causal: whether a token attends only to itself and the tokens before it.
      split: with a context, norm it and put a second MLP, ``mlp_self``, before the cross-attention, as open_clip's
        decoders do: two blocks in one.
      qkv_linear: linear map (dense, or a structured one) of the projections to queries, keys and values.
      out_linear: linear map (dense, or a structured one) of attention's output projection.
      qkv_bias: which of queries, keys and values have a bias in self-attention: all, "qv", or "none" of them.
      qk_norm: norm of the queries and keys of every head; None for none.
      attention_implementation: how attention is computed, as :func:`vit_jax.layers.attention.attention` takes it; None
        picks.
      rotary: positions as a function of queries and keys; None for none.
      logit_bias: a term of self-attention's logits; None for none.
      reduce: called with a name, what makes fewer of the tokens between self-attention and MLP; None keeps all.
      parallel: self-attention and MLP side by side, ``x + scale * (attention(y) + mlp(y))`` with ``y = norm(x)``
        (Dehghani et al. 2023, arXiv:2302.05442, section 2).
    """

    heads: int = 1
    causal: bool = False
    split: bool = False
    qkv_linear: LinearSpec = Dense()
    out_linear: LinearSpec = Dense()
    qkv_bias: QKVBias = "qkv"
    qk_norm: Norm | None = None
    attention_implementation: str | None = None
    rotary: Rotary | None = None
    logit_bias: LogitBias | None = None
    reduce: Callable[..., Callable[[Tokens, Attended], Tokens] | None] | None = None
    parallel: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array | Tokens,
        *,
        key: jax.Array | None = None,
        drop_path: float | jax.Array | None = None,
        mask: jax.Array | None = None,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
        cache: KVCache | None = None,
        at: jax.Array | None = None,
    ) -> Any:
        """``[B, N, D] -> [B, N, D]``.

        Args:
          x: tokens; :class:`Tokens` where a block before has merged some.
          key: randomness of dropout and stochastic depth; None in evaluation.
          drop_path: rate of stochastic depth, None for never.
          mask: bool, broadcastable to ``[B, K, N, N]``; True means "may attend".
          context: tokens ``[B, M, C]`` to attend to, or None.
          context_mask: bool, broadcastable to ``[B, K, N, M]``.
          cache: where this call's tokens stand in the KV cache, for decoding step by step; None attends without one.
          at: coordinates ``[P, A]`` of the last P tokens for ``rotary``.

        Returns:
          As ``x``; :class:`Tokens` from the block on that has merged some.

        Raises:
          UserError: tokens are to be reduced under a causal mask, or between branches that are parallel.
        """
        x, size, bias = x if isinstance(x, Tokens) else Tokens(x)
        reduce = None if self.reduce is None else self.reduce(name="reduce")
        if reduce is not None and self.causal:
            raise UserError("a causal mask needs all tokens in their order; set reduce=None.")
        if self.parallel and (reduce is not None or context is not None):
            raise UserError("parallel branches have nothing between them; set reduce=None, and take no context.")
        seen: list[Attended] = []
        keys = [None] * 4 if key is None else list(jax.random.split(key, 3 + self.split))
        attend = functools.partial(
            MultiHeadAttention,
            self.heads,
            qkv_linear=self.qkv_linear,
            out_linear=self.out_linear,
            dtype=self.dtype,
            implementation=self.attention_implementation,
        )

        def self_attention(y: jax.Array, _: Any) -> jax.Array:
            hooks: dict[str, Any] = {"rotary": self.rotary, "logit_bias": self.logit_bias, "name": "attention"}
            hooks |= {"qkv_bias": self.qkv_bias, "qk_norm": self.qk_norm, "norm_epsilon": self.norm_epsilon}
            see = None if reduce is None else seen.append
            return attend(causal=self.causal, **hooks)(y, mask=mask, key_bias=bias, cache=cache, at=at, see=see)

        def cross_attention(y: jax.Array, _: Any) -> jax.Array:
            return attend(name="cross_attention")(y, context=context, mask=context_mask, cache=cache)

        if self.parallel:
            both = lambda y, key: self_attention(y, None) + self.mlp(y, key)  # noqa: E731
            x = self.branch(x, "attention", both, keys[0], drop_path)
            return x if size is None else Tokens(x, size, bias)
        x = self.branch(x, "attention", self_attention, keys[0], drop_path)
        if reduce is not None:
            x, size, bias = reduce(Tokens(x, size, bias), seen[0])
        if context is not None:
            if self.split:
                context = LayerNorm(self.dtype, self.norm_epsilon, name="norm_context")(context)
                x = self.branch(x, "mlp_self", functools.partial(self.mlp, name="mlp_self"), keys[3], drop_path)
            x = self.branch(x, "cross_attention", cross_attention, keys[1], drop_path)
        x = self.branch(x, "mlp", self.mlp, keys[2], drop_path)
        return x if size is None else Tokens(x, size, bias)


class Encoder(nn.Module):
    """A stack of blocks and a final norm. Parameters: ``block_0`` ... and ``norm``, whatever scan and remat say.

    Attributes:
      depth: number of blocks.
      block: makes a block, called with ``name=``; or one such for each.
      drop_path: stochastic depth rate of the last block.
      first_drop_path: that of the first, from which it grows linearly.
      stochastic: whether blocks need randomness in training.
      scan: run the blocks as one ``lax.scan`` over stacked parameters: compile time independent of depth.
      remat: what the backward pass recomputes, a name in :data:`REMAT` or "none".
      saved: as which numbers it keeps the rest, a name in :data:`vit_jax.layers.saved.SAVED`.
      dtype: compute type; parameters are float32.
      norm_epsilon: added to the variance in the final layer norm.
      final_norm: whether a layer norm follows the last block.
    """

    depth: int
    block: Callable[..., nn.Module] | tuple[Callable[..., nn.Module], ...]
    drop_path: float = 0.0
    first_drop_path: float = 0.0
    stochastic: bool = False
    scan: bool = False
    remat: Remat = "none"
    saved: Saved = "float"
    dtype: DType = "float32"
    norm_epsilon: float = EPSILON
    final_norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, blocks: range | None = None, **kwargs: Any) -> Any:
        """``[B, N, D] -> [B, N, D]``, :class:`Tokens` where a block has merged some; ``kwargs`` go to every block.

        With ``blocks`` those alone run, and the norm behind the last of all.

        The collection "features" gets ``block_0`` ..., the output of every block. Under scan and remat blocks have all
        collections and random streams that they have without; only Flax's own streams are split otherwise by a scan.

        Raises:
          UserError: blocks differ, or change the number of tokens, under ``scan``; ``remat`` or ``saved`` is unknown.
        """
        fresh = self.is_initializing()
        numbers = range(self.depth) if blocks is None else blocks
        keys = jax.random.split(self.make_rng("dropout"), self.depth) if train and self.stochastic else None
        rates = (
            np.linspace(self.first_drop_path, self.drop_path, self.depth, dtype=np.float32) if self.drop_path else None
        )
        per_block = {"key": keys, "drop_path": rates}
        features = self.is_mutable_collection("features") and not fresh

        shared = {name: value for name, value in kwargs.items() if isinstance(value, jax.Array)}
        others = {name: value for name, value in kwargs.items() if name not in shared}

        def body(block: nn.Module, x: jax.Array, own: dict[str, Any]) -> tuple[jax.Array, jax.Array | None]:
            x = block(x, **own, **others)
            return x, _array(x) if features else None

        if self.remat != "none" and not fresh:
            policy = config.lookup(REMAT, self.remat, "remat policy")
            body = nn.remat(body, policy=policy, prevent_cse=not self.scan)
        if not fresh:
            body = config.lookup(SAVED, self.saved, "type of what is saved")(body)
        x = x.astype(self.dtype)
        # A step of decoding reads every parameter once: stacking them first would cost as much again.
        if self.scan and not fresh and kwargs.get("cache") is None:
            step = lambda block, x, own: body(block, x, own | shared)  # noqa: E731
            x, stack = self._scan(
                step, x, jax.tree.map(lambda row: row[numbers.start : numbers.stop], per_block), numbers
            )
            outputs = [_take(stack, i) for i in range(len(numbers))]
        else:
            outputs = []
            for i in numbers:
                block = self.block[i] if isinstance(self.block, tuple) else self.block
                x, output = body(block(name=f"block_{i}"), x, _take(per_block, i) | shared)
                outputs.append(output)
        if features:
            for i, output in zip(numbers, outputs, strict=True):
                self.put_variable("features", f"block_{i}", output)
        y = _array(x)
        if self.final_norm and numbers.stop == self.depth:
            y = LayerNorm(self.dtype, self.norm_epsilon, name="norm")(y)
        return x._replace(x=y) if isinstance(x, Tokens) else y

    def _scan(self, body: Callable[..., Any], x: jax.Array, per_block: dict[str, Any], numbers: range) -> Any:
        """``body`` as one ``lax.scan`` over the variables of blocks, stacked on the way in and unstacked after."""
        make, names = self.block, [f"block_{i}" for i in numbers]
        if isinstance(make, tuple):
            raise UserError("a scan runs one block again and again, and those of this model differ; set scan=False.")

        def stack(variables: Any) -> Any:
            rows = {c: [nn.unbox(tree[name]) for name in names] for c, tree in variables.items() if names[0] in tree}
            return {c: {"blocks": jax.tree.map(_stack, *row)} for c, row in rows.items()}

        def unstack(variables: Any) -> Any:
            found = {c: tree["blocks"] for c, tree in variables.items() if "blocks" in tree}
            return {c: {name: _take(tree, i) for i, name in enumerate(names)} for c, tree in found.items()}

        def step(block: nn.Module, x: jax.Array, own: dict[str, Any]) -> Any:
            y, output = body(block, x, own)
            if (n := _array(y).shape[1]) != x.shape[1]:
                raise UserError(
                    f"a block makes {n} tokens of {x.shape[1]}, and a scan runs all blocks on equally many; "
                    "set scan=False."
                )
            return y, output

        def run(self: Encoder, x: jax.Array, per_block: dict[str, Any]) -> Any:
            over: Any = {"variable_axes": {True: 0}, "split_rngs": {True: True}, "length": len(numbers)}
            return nn.scan(step, **over, check_constancy_invariants=False)(make(name="blocks"), x, per_block)

        return nn.map_variables(run, True, stack, unstack, mutable=True)(self, x, per_block)


def _array(x: Any) -> jax.Array:
    """The tokens, which come first where blocks give more to the next."""
    tokens: jax.Array = x[0] if isinstance(x, tuple) else x
    return tokens


def _take(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)


@jax.custom_vjp
def _stack(*rows: jax.Array) -> jax.Array:
    """``jnp.stack(rows)``; XLA:CPU compiles one kernel for all rows of the gradient that are used alike.

    It would compile one for each, as each has a place of its own, if the index did not come from behind a barrier.
    """
    return jnp.stack(rows)


def _unstacked(count: int, g: jax.Array) -> tuple[jax.Array, ...]:
    if sharding.platform() != "cpu":
        return tuple(g)
    index = [jax.lax.optimization_barrier(jnp.int32(i)) for i in range(count)]
    return tuple(jax.lax.dynamic_index_in_dim(g, i, keepdims=False) for i in index)


_stack.defvjp(lambda *rows: (jnp.stack(rows), len(rows)), _unstacked)
