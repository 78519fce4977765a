"""Attention: one function, a table of implementations, and the multi-head module."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import sharding
from vit_jax.kernels.attention import mosaic_tpu
from vit_jax.kernels.attention.rotation import Rotation
from vit_jax.kernels.dispatch import Implementation, choose, older_gpu
from vit_jax.layers.hooks import Attended, FixedRotary, LogitBias, Rotary, Term
from vit_jax.layers.linear import Dense, DType, LinearSpec, logical, monarch, xavier_uniform_parts
from vit_jax.layers.norm import EPSILON, NORMS, Norm
from vit_jax.types import UserError

QKVBias = Literal["qkv", "qv", "none"]
"""Which of queries, keys and values have a bias."""


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    causal: bool = False,
    implementation: str | None = None,
    through: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """``softmax(q k^T / sqrt(E) + bias) v`` per head (Vaswani et al. 2017, eq. 1).

    Args:
      q: ``[B, N, K, E]``.
      k: ``[B, M, K, E]``.
      v: ``[B, M, K, E]``.
      mask: bool, broadcastable to ``[B, K, N, M]``; True is "may attend". A row without any gives zeros.
      bias: float32, broadcastable to ``[B, K, N, M]``, added to the logits.
      causal: query i sees the keys up to i (for N < M, the last query sees all).
      implementation: a name in :data:`IMPLEMENTATIONS`; None picks.
      through: what the probabilities float32 ``[B, K, N, M]`` go through before they weight ``v``, to be seen, changed
        or differentiated by. They are then materialised, whatever the implementation, as with a ``bias``.

    Returns:
      ``[B, N, K, E]`` in the type of ``q``. Logits and softmax are float32, probabilities in the type of ``q``.

    Raises:
      UsageError: an unknown implementation, or one that does not compute this.
    """
    mask = combine_masks(q, k, mask, causal)
    run: Callable[..., jax.Array] = choose("attention", IMPLEMENTATIONS, implementation, q, k, v, mask)
    if bias is None and through is None:
        return run(q, k, v, mask)
    weights = _weights(jnp.swapaxes(q, 1, 2), jnp.swapaxes(k, 1, 2), mask, bias)
    weights = (weights if through is None else through(weights)).astype(q.dtype)
    return jnp.swapaxes(_product(weights, jnp.swapaxes(v, 1, 2), 3, 2).astype(q.dtype), 1, 2)


def attention_weights(
    q: jax.Array, k: jax.Array, *, mask: jax.Array | None = None, bias: jax.Array | None = None, causal: bool = False
) -> jax.Array:
    """The probabilities float32 ``[B, K, N, M]`` that :func:`attention` averages ``v`` with."""
    return _weights(jnp.swapaxes(q, 1, 2), jnp.swapaxes(k, 1, 2), combine_masks(q, k, mask, causal), bias)


def _times(
    factor: jax.Array | None, through: Callable[[jax.Array], jax.Array] | None
) -> Callable[[jax.Array], jax.Array] | None:
    """What multiplies probabilities with ``factor`` and hands them to ``through``, if there is any."""
    if factor is None:
        return through
    return lambda weights: weights * factor if through is None else through(weights * factor)


def combine_masks(q: jax.Array, k: jax.Array, mask: jax.Array | None, causal: bool) -> jax.Array | None:
    """``mask`` and the causal triangle as one bool array of rank 4, or None."""
    if mask is not None and mask.ndim < 4:
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    if not causal:
        return mask
    n, m = q.shape[1], k.shape[1]
    triangle = jnp.tril(jnp.ones((1, 1, n, m), bool), m - n)
    return triangle if mask is None else mask & triangle


def _product(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    """Per batch entry and head: contracts one axis of each, accumulated in float32."""
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)


def _weights(q: jax.Array, k: jax.Array, mask: jax.Array | None, bias: jax.Array | None = None) -> jax.Array:
    logits = _product(q, k, 3, 3) * (q.shape[-1] ** -0.5)
    logits = logits if bias is None else logits + bias
    if mask is None:
        return jax.nn.softmax(logits, axis=-1)
    low = jnp.finfo(jnp.float32).min
    return jnp.where(mask, jax.nn.softmax(jnp.where(mask, logits, low), axis=-1), 0.0)


@jax.custom_vjp
def _heads_first(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    return _heads_first_fwd(q, k, v, mask)[0]


def _heads_first_fwd(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, Any]:
    weights = _weights(q, k, mask).astype(q.dtype)
    return _product(weights, v, 3, 2).astype(q.dtype), (q, k, v, weights)


def _heads_first_bwd(saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, weights = saved
    g, wide = g.astype(q.dtype), weights.astype(jnp.float32)
    dweights = _product(g, v, 3, 3)
    dlogits = wide * (dweights - jnp.sum(dweights * wide, axis=-1, keepdims=True)) * (q.shape[-1] ** -0.5)
    dlogits = dlogits.astype(q.dtype)
    dq, dk, dv = _product(dlogits, k, 3, 2), _product(dlogits, q, 2, 2), _product(weights, g, 2, 2)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_heads_first.defvjp(_heads_first_fwd, _heads_first_bwd)


def attention_xla(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Two products per head, heads before tokens, which is the faster layout on the CPU."""
    return jnp.swapaxes(_heads_first(*(jnp.swapaxes(a, 1, 2) for a in (q, k, v)), mask), 1, 2)


def attention_cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: None) -> jax.Array:
    """cuDNN's fused attention, which never writes the probabilities to memory.

    JAX differentiates it for even numbers of tokens only: odd ones are filled up, and cuDNN is told to pass that over.
    """
    fill = lambda x: jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))  # noqa: E731
    lengths: Any = {}
    if q.shape[1] % 2 or k.shape[1] % 2:
        count = lambda x: jnp.full(x.shape[0], x.shape[1], jnp.int32)  # noqa: E731
        lengths = {"query_seq_lengths": count(q), "key_value_seq_lengths": count(k)}
    y = jax.nn.dot_product_attention(fill(q), fill(k), fill(v), implementation="cudnn", **lengths)
    return y[:, : q.shape[1]]


def _unsupported_by_cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> str | None:
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"the compute type is {q.dtype}, not bfloat16 or float16"
    if mask is not None:
        return "there is a mask"
    if q.shape[-1] not in SIZES:
        return f"heads have {q.shape[-1]} channels, not a multiple of 8 up to 128"
    return older_gpu(8)


def _slower_by_cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> str | None:
    return f"it pays from {TOKENS} tokens on, here are {k.shape[1]}" if k.shape[1] < TOKENS else None


SIZES = range(8, 129, 8)
"""Channels of a head that cuDNN's attention takes on every GPU that has it."""
TOKENS = 128
"""Keys from which on cuDNN is faster than XLA."""
IMPLEMENTATIONS = {
    "cudnn": Implementation(attention_cudnn, _unsupported_by_cudnn, _slower_by_cudnn, platform="gpu"),
    "xla": Implementation(attention_xla),
}
"""``(q, k, v, mask of rank 4 or None) -> out``."""


def self_attention(
    qkv: jax.Array,
    heads: int,
    *,
    causal: bool = False,
    blocks: int = 1,
    key_bias: jax.Array | None = None,
    rotation: Rotation | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """:func:`attention` of tokens to each other, given the product that holds queries, keys and values.

    Args:
      qkv: ``[B, N, heads * 3 * E]``, ordered (blocks, heads, 3, E / blocks).
      heads: number of heads.
      causal: token i sees those up to i.
      blocks: in how many blocks the channels of a head come.
      key_bias: float32 ``[B, N]``, added to the logits of each key; it has no gradient.
      rotation: how queries and keys of all heads turn before; it has no gradient.
      implementation: a name in :data:`SELF_IMPLEMENTATIONS` or :data:`IMPLEMENTATIONS`; None picks.

    Returns:
      ``[B, N, heads * E]`` in the type of ``qkv``, ordered (blocks, heads, E / blocks).

    Raises:
      UsageError: an unknown implementation, or one that does not compute this.
    """
    if implementation in (None, *SELF_IMPLEMENTATIONS):
        args = (qkv, heads, causal, blocks, key_bias, rotation)
        y: jax.Array = choose("self-attention", SELF_IMPLEMENTATIONS, implementation, *args)(*args)
        return y
    return _apart(qkv, heads, causal, blocks, key_bias, rotation, implementation)


def _apart(
    qkv: jax.Array,
    heads: int,
    causal: bool,
    blocks: int,
    key_bias: jax.Array | None,
    rotation: Rotation | None = None,
    implementation: str | None = None,
) -> jax.Array:
    q, k, v = split_heads(qkv, heads, 3, blocks)
    if rotation is not None:
        q, k = rotation(q), rotation(k)
    y = attention(q, k, v, bias=_of_keys(key_bias), causal=causal, implementation=implementation)
    return join_heads(y, blocks)


def _sum(*terms: jax.Array | None) -> jax.Array | None:
    """Of those that there are."""
    return functools.reduce(lambda a, b: b if a is None else a if b is None else a + b, terms)


def _of_keys(bias: jax.Array | None) -> jax.Array | None:
    """``[B, N]`` as :func:`attention` takes it, without a gradient."""
    return None if bias is None else jax.lax.stop_gradient(bias)[:, None, None, :]


def split_heads(y: jax.Array, heads: int, parts: int, blocks: int = 1) -> list[jax.Array]:
    """``[B, N, D]`` ordered (blocks, heads, parts, E / blocks) -> each part ``[B, N, heads, E]``."""
    size = y.shape[-1] // heads // parts
    y = y.reshape(*y.shape[:2], blocks, heads, parts, size // blocks)
    y = sharding.constrain(y, "batch", None, None, "heads", None, None)
    if sharding.platform() == "gpu":  # cuDNN takes tokens before heads
        y = jnp.moveaxis(y, 2, 4).reshape(*y.shape[:2], heads, parts, size)
        return [y[..., part, :] for part in range(parts)]
    # The barrier makes heads-first one copy: XLA:CPU would emit a slower one for each of q, k and v.
    y = jax.lax.optimization_barrier(y.transpose(4, 0, 3, 1, 2, 5))
    y = y.reshape(*y.shape[:4], size)
    return [jnp.swapaxes(part[0], 1, 2) for part in jax.lax.split(y, (1,) * parts, axis=0)]


def _views(qkv: jax.Array, heads: int, blocks: int) -> list[jax.Array]:
    """Queries and keys as :func:`split_heads` gives them, for those who read parts of them or sums: without copies."""
    y = qkv.reshape(*qkv.shape[:2], blocks, heads, 3, -1)
    return [jnp.moveaxis(y[..., part, :], 2, 3).reshape(*qkv.shape[:2], heads, -1) for part in range(2)]


def _attended(
    q: jax.Array,
    k: jax.Array,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    summed: Callable[[], jax.Array] | None = None,
) -> Attended:
    def weights(n: int) -> jax.Array:
        rows = [None if term is None else term[..., :n, :] for term in (mask, bias)]
        return attention_weights(q[:, :n], k, mask=rows[0], bias=rows[1])

    by_adding = lambda: jax.lax.stop_gradient(jnp.sum(k.astype(jnp.float32), axis=2))  # noqa: E731
    return Attended(k, summed or by_adding, weights)


def _seen(qkv: jax.Array, heads: int, blocks: int, key_bias: jax.Array | None) -> Attended:
    """Of the product that holds queries, keys and values."""
    summed = functools.partial(_summed_keys, qkv, heads, blocks) if sharding.platform() == "tpu" else None
    q, k = _views(qkv, heads, blocks)
    return _attended(q, k, bias=_of_keys(key_bias), summed=summed)


def _summed_keys(qkv: jax.Array, heads: int, blocks: int) -> jax.Array:
    """The sum of the keys over the heads, float32 ``[B, N, E]``, as a product with zeros and ones.

    Heads lie side by side in a TPU's registers: to add them as they are takes 89 thousand cycles of a v5e chip in each
    block of ViT-S/16 with 64 images, by its compiler.
    """
    columns = np.arange(qkv.shape[-1]).reshape(blocks, heads, 3, -1)[:, :, 1]
    ones = np.zeros((qkv.shape[-1], columns.size // heads), np.float32)
    ones[np.moveaxis(columns, 1, 0).reshape(heads, -1), np.arange(ones.shape[1])] = 1
    product = jax.lax.dot_general(
        jax.lax.stop_gradient(qkv), jnp.asarray(ones, qkv.dtype), (((2,), (0,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
    )  # fmt: skip
    return product


def join_heads(y: jax.Array, blocks: int = 1) -> jax.Array:
    """``[B, N, heads, E] -> [B, N, D]`` ordered (blocks, heads, E / blocks), the inverse of :func:`split_heads`."""
    parts = y.reshape(*y.shape[:3], blocks, -1)
    return jnp.swapaxes(parts, 2, 3).reshape(*y.shape[:2], -1)


SELF_IMPLEMENTATIONS = {"mosaic_tpu": mosaic_tpu.IMPLEMENTATION, "apart": Implementation(_apart)}
"""``(qkv, heads, causal, blocks, key_bias, rotation) -> out``; ``apart`` is one of :data:`IMPLEMENTATIONS`."""


class KVCache(NamedTuple):
    """Decoding step by step: keys and values are kept in two collections, made by the first call.

    Those of the tokens are in ``"cache"`` and grow, those of a context are in ``"memory"`` and stay. There may be W
    rows of tokens for each row of the context, one after the other.

    Attributes:
      start: position of the first token of this call, int32 scalar.
      length: number of tokens that the cache has room for, static.
    """

    start: jax.Array | int
    length: int

    def mask(self, tokens: int) -> jax.Array:
        """bool ``[tokens, length]``: each of the given tokens may attend to itself and to those before it."""
        return jnp.arange(self.length)[None] <= self.start + jnp.arange(tokens)[:, None]


class MultiHeadAttention(nn.Module):
    """Self-attention, or cross-attention where a ``context`` is given.

    Self-attention has one fused projection ``qkv`` whose output is ordered (heads, 3, head_dim), so that a shard of the
    flattened axis holds whole heads. Cross-attention has ``q`` and ``kv``, ordered (heads, 2, head_dim). ``out``
    projects back.

    Attributes:
      heads: number of heads; divides the width.
      causal: whether a token attends only to itself and the tokens before it.
      qkv_linear: linear map (dense, or a structured one) of the projections to queries, keys and values.
      out_linear: linear map (dense, or a structured one) of attention's output projection.
      dtype: compute type; parameters are float32.
      implementation: how attention is computed, as :func:`attention` takes it; None picks.
      rotary: positions as a function of queries and keys, of self-attention; None for none.
      logit_bias: a term of the logits; None for none.
      qkv_bias: which of queries, keys and values have a bias in self-attention: all in the projection's, ``bias_q`` and
        ``bias_v`` alone as BEiT and EVA have it ("qv"), or "none".
      qk_norm: norm of the queries and keys of every head, ``norm_q`` and ``norm_k``, in self-attention; None for none.
      norm_epsilon: of these norms.
    """

    heads: int
    causal: bool = False
    qkv_linear: LinearSpec = Dense()
    out_linear: LinearSpec = Dense()
    dtype: DType = "float32"
    implementation: str | None = None
    rotary: Rotary | None = None
    logit_bias: LogitBias | None = None
    qkv_bias: QKVBias = "qkv"
    qk_norm: Norm | None = None
    norm_epsilon: float = EPSILON

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        context: jax.Array | None = None,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        key_bias: jax.Array | None = None,
        cache: KVCache | None = None,
        at: jax.Array | None = None,
        see: Callable[[Attended], None] | None = None,
    ) -> jax.Array:
        """``x [B, N, D]``, ``context [B, M, C]`` or None; ``mask``, ``bias`` as in :func:`attention` -> ``[B, N, D]``.

        With a ``cache``, self-attention sees the tokens before ``cache.start`` too and is causal, and a context is
        projected by the first call only. ``key_bias [B, N]`` is as of :func:`self_attention`. The collection
        "intermediates" gets the probabilities ``attention`` float32 ``[B, K, N, M]``; the gradient by them is that by
        the variable of this name in "perturbations". ``see`` is called with what self-attention was computed of. ``at``
        are the tokens' coordinates for ``rotary``.
        """
        causal = self.causal and cache is None
        blocks = self._blocks(x.shape[-1])
        asked: Callable[[jax.Array], jax.Array] | None = self._shown if self._is_asked() else None

        if context is None:
            qkv = self._product(x, "qkv", x.shape[-1], blocks)
            rotation = self._rotation(x, at) if see is None else None
            turns = None if rotation is not None else self.rotary
            if all(p is None for p in (cache, mask, bias, asked, turns, self.logit_bias, self.qk_norm)):
                options: dict[str, Any] = {"causal": causal, "blocks": blocks, "implementation": self.implementation}
                if see is not None:
                    see(_seen(qkv, self.heads, blocks, key_bias))
                y = self_attention(qkv, self.heads, key_bias=key_bias, rotation=rotation, **options)
                return self._out(y, x.shape[-1], blocks)
            q, k, v = split_heads(qkv, self.heads, 3, blocks)
            if self.qk_norm is not None:
                norm = functools.partial(NORMS[self.qk_norm], self.dtype, self.norm_epsilon)
                q, k = norm(name="norm_q")(q), norm(name="norm_k")(k)
            if self.rotary is not None:
                q, k = self.rotary(name="rotary")(q, k, at)
            if cache is not None:
                k, v = (self._kept(name, new, cache) for name, new in (("key", k), ("value", v)))
                mask = cache.mask(x.shape[1])
        else:
            (q,) = split_heads(self._product(x, "q", x.shape[-1], blocks), self.heads, 1, blocks)
            if cache is not None and self.has_variable("memory", "key"):
                k, v = (self.get_variable("memory", name) for name in ("key", "value"))
                q = q.reshape(k.shape[0], -1, *q.shape[2:])
            else:
                k, v = split_heads(self._product(context, "kv", x.shape[-1], blocks), self.heads, 2, blocks)
                if cache is not None:
                    self.put_variable("memory", "key", k)
                    self.put_variable("memory", "value", v)
        term = self._term(q, k)
        bias, asked = _sum(bias, _of_keys(key_bias), term and term.bias), _times(term and term.factor, asked)
        if see is not None:
            see(_attended(q, k, mask, bias))
        y = attention(q, k, v, mask=mask, bias=bias, causal=causal, implementation=self.implementation, through=asked)
        return self._out(join_heads(y, blocks).reshape(x.shape), x.shape[-1], blocks)

    def _out(self, y: jax.Array, width: int, blocks: int) -> jax.Array:
        """The output projection of ``y [B, N, D]``, ordered (blocks, heads, E / blocks)."""
        linear = monarch.from_blocks(self.out_linear, blocks, width)
        if linear is None:  # it wants (heads, E), the blocks interleaved
            linear = self.out_linear
            y = jnp.moveaxis(y.reshape(*y.shape[:2], blocks, self.heads, -1), 2, 4).reshape(y.shape)
        return linear(width, name="out", axes=("heads", "embed"), dtype=self.dtype)(y)

    def _rotation(self, x: jax.Array, at: jax.Array | None) -> Rotation | None:
        """That of ``rotary``, where it is fixed."""
        if at is None or not isinstance(self.rotary, FixedRotary):
            return None
        return self.rotary.rotation(at, x.shape[1], x.shape[2] // self.heads)

    def _term(self, q: jax.Array, k: jax.Array) -> Term | None:
        made = None if self.logit_bias is None else self.logit_bias(name="logit_bias")(q, k)
        return made if made is None or isinstance(made, Term) else Term(made)

    def _is_asked(self) -> bool:
        """Whether somebody asks for the probabilities or for their gradient."""
        if self.is_initializing():
            return False
        asked = any(self.is_mutable_collection(c) for c in ("intermediates", "perturbations"))
        return asked or self.has_variable("perturbations", "attention")

    def _shown(self, weights: jax.Array) -> jax.Array:
        """``weights`` and what is to be added to them, noted for those who ask."""
        if self.is_mutable_collection("perturbations") or self.has_variable("perturbations", "attention"):
            weights = self.perturb("attention", weights)
        self.sow("intermediates", "attention", weights)
        return weights

    def _blocks(self, width: int) -> int:
        """In how many interleaved blocks the channels of a head come: as the projections leave them, if heads allow."""
        if width % self.heads:
            raise UserError(f"width {width} is not divisible by {self.heads} heads; choose heads that divide it.")
        _, blocks = monarch.blocked(self.qkv_linear, width)
        return 1 if width // self.heads % blocks else blocks

    def _kept(self, name: str, new: jax.Array, cache: KVCache) -> jax.Array:
        """``[B, cache.length, K, E]``: what was kept, with ``new [B, N, K, E]`` from ``cache.start`` on."""
        shape = (new.shape[0], cache.length, *new.shape[2:])
        kept = self.variable("cache", name, jnp.zeros, shape, new.dtype)
        kept.value = jax.lax.dynamic_update_slice_in_dim(kept.value, new, cache.start, axis=1)
        return kept.value

    def _product(self, x: jax.Array, name: str, width: int, blocks: int) -> jax.Array:
        """``[B, N, D]`` -> ``[B, N, width * len(name)]``, ordered (blocks, heads, parts, E / blocks)."""
        linear = self.qkv_linear if blocks == 1 else monarch.blocked(self.qkv_linear, width * len(name))[0]
        fields: dict[str, Any] = {"name": name, "axes": ("embed", "heads"), "dtype": self.dtype}
        fields["kernel_init"] = xavier_uniform_parts(len(name))
        if name != "qkv" or self.qkv_bias == "qkv":
            return linear(width * len(name), **fields)(x)
        y = linear(width * len(name), use_bias=False, **fields)(x)
        return y if self.qkv_bias == "none" else y + self._bias(width, blocks).astype(y.dtype)

    def _bias(self, width: int, blocks: int) -> jax.Array:
        """Of queries and values, ``[1, 1, 3 * width]``, ordered (blocks, heads, 3, E / blocks)."""
        init = logical(nn.initializers.zeros, ("heads",))
        q, v = (self.param(f"bias_{part}", init, (width,)) for part in "qv")
        parts = jnp.stack([q, jnp.zeros_like(q), v]).reshape(3, self.heads, -1, blocks)
        return parts.transpose(3, 1, 0, 2).reshape(1, 1, -1)
