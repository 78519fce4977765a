"""Toy values for every hook in a block, in a whole ViT."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.layers.attention import MultiHeadAttention, attention
from vit_jax.layers.block import Block, Encoder
from vit_jax.layers.hooks import Adapter, LogitBias, MLPSpec, Reducer, Rotary, Tokens
from vit_jax.types import UsageError, UserError

FIELDS = {"num_classes": 3, "patch": 4, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 24}


class Bottleneck(nn.Module):
    rank: int
    scale: float

    @nn.compact
    def __call__(self, y):
        down = nn.Dense(self.rank, use_bias=False, name="down")(y)
        up = nn.initializers.constant(self.scale)
        return y + nn.Dense(y.shape[-1], use_bias=False, kernel_init=up, name="up")(jnp.tanh(down))


@dataclasses.dataclass(frozen=True)
class Houlsby:
    rank: int = 2
    scale: float = 0.0

    def __call__(self, *, name):
        return Bottleneck(self.rank, self.scale, name=name)


class Gated(nn.Module):
    hidden: int
    linear: object
    activation: str
    dropout: float
    dtype: str

    @nn.compact
    def __call__(self, x, *, key=None):
        gate, value = (self.linear(self.hidden, name=n, dtype=self.dtype)(x) for n in ("gate", "value"))
        return self.linear(x.shape[-1], name="out", dtype=self.dtype)(jax.nn.silu(gate) * value)


@dataclasses.dataclass(frozen=True)
class SwiGlu:
    def __call__(self, hidden, **fields):
        return Gated(hidden, **fields)


@dataclasses.dataclass(frozen=True)
class Rope:
    base: float = 100.0

    def __call__(self, *, name):
        return self.turn

    def coordinates(self, height, width):
        return np.indices((height, width)).reshape(2, -1).T.astype(np.float32)

    def turn(self, q, k, at):
        return tuple(self.turned(x, at) for x in (q, k))

    def turned(self, x, at):
        waves = x.shape[-1] // 2 // at.shape[-1]
        speed = jnp.asarray(self.base ** -np.linspace(0, 1, waves), jnp.float32)
        angle = (at[:, :, None] * speed[None, None]).reshape(len(at), -1)[None, :, None]
        prefix, rest = x[:, : x.shape[1] - len(at)], x[:, x.shape[1] - len(at) :]
        a, b = jnp.split(rest, 2, axis=-1)
        c, s = jnp.cos(angle), jnp.sin(angle)
        return jnp.concatenate([prefix, jnp.concatenate([a * c - b * s, a * s + b * c], axis=-1)], axis=1)


class Distance(nn.Module):
    @nn.compact
    def __call__(self, q, k):
        slope = self.param("slope", nn.initializers.ones, (q.shape[2],))
        far = jnp.abs(jnp.arange(q.shape[1])[:, None] - jnp.arange(k.shape[1])[None]).astype(jnp.float32)
        return -slope[None, :, None, None] * far[None, None]


@dataclasses.dataclass(frozen=True)
class Alibi:
    def __call__(self, *, name):
        return Distance(name=name)


@dataclasses.dataclass(frozen=True)
class KeepMostAttended:
    """In one block, the tokens that cls attends to most."""

    block: int
    tokens: int

    def __call__(self, place, *, name):
        return self.keep if place.block == self.block else None

    def keep(self, tokens, attended):
        assert attended.keys.shape[1] == tokens.x.shape[1]
        scores = jnp.mean(attended.weights(1)[:, :, 0, 1:], axis=1)
        _, best = jax.lax.top_k(scores, self.tokens)
        rest = jnp.take_along_axis(tokens.x[:, 1:], best[:, :, None], axis=1)
        return Tokens(jnp.concatenate([tokens.x[:, :1], rest], axis=1))


@dataclasses.dataclass(frozen=True)
class MergePairs:
    """Every two neighbours, by their mean."""

    def __call__(self, place, *, name):
        return self.merge

    def merge(self, tokens, _):
        b, n, d = tokens.x.shape
        size = jnp.ones((b, n)) if tokens.size is None else tokens.size
        weighted = (tokens.x * size[:, :, None]).reshape(b, n // 2, 2, d).sum(2)
        total = size.reshape(b, n // 2, 2).sum(2)
        return Tokens(weighted / total[:, :, None], total, jnp.log(total))


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 12, 3)), jnp.float32)


@functools.cache
def made(**hooks):
    """A ViT with these hooks, its parameters, none of them zero, and its function."""
    model = models.create("vit", **FIELDS, **hooks)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 8, 12, 3)))["params"])
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    return model, params, jax.jit(lambda p, x: model.apply({"params": p}, x))


def test_they_are_values_of_a_configuration():
    for value, protocol in ((Houlsby(), Adapter), (SwiGlu(), MLPSpec), (Rope(), Rotary), (Alibi(), LogitBias)):
        assert isinstance(value, protocol)
    assert isinstance(MergePairs(), Reducer)
    with pytest.raises(UsageError, match=r"model.adapter='lora' is of type str, expected Adapter"):
        models.create("vit", adapter="lora")


@pytest.mark.thorough
def test_an_adapter_follows_every_branch(image):
    _, params, run = made(adapter=Houlsby())
    block = params["encoder"]["block_1"]
    assert {"adapter_attention", "adapter_mlp"} <= set(block) and set(block["adapter_mlp"]) == {"down", "up"}
    _, plain, without = made()
    assert jax.tree.structure(plain) != jax.tree.structure(params)
    kept = {name: leaf for name, leaf in block.items() if not name.startswith("adapter")}
    assert jax.tree.structure(kept) == jax.tree.structure(plain["encoder"]["block_1"])
    off = jax.tree_util.tree_map_with_path(lambda path, x: 0 * x if "up" in str(path) else x, params)
    bare = {**params, "encoder": {**params["encoder"], **{
        f"block_{i}": {k: v for k, v in params["encoder"][f"block_{i}"].items() if not k.startswith("adapter")}
        for i in range(2)
    }}}  # fmt: skip
    np.testing.assert_allclose(run(off, image), without(bare, image), atol=1e-6)
    assert float(jnp.max(jnp.abs(run(params, image) - run(off, image)))) > 1e-3


@pytest.mark.thorough
def test_a_gated_mlp_stands_in_its_place(image):
    model, params, run = made(ffn=SwiGlu(), mlp_linear="low_rank(4)")
    mlp = params["encoder"]["block_0"]["mlp"]
    assert set(mlp) == {"gate", "value", "out"} and "kernel_1" in mlp["gate"]
    assert run(params, image).shape == (2, 3)
    scanned = jax.jit(lambda p, x: model.clone(scan=True, remat="full").apply({"params": p}, x))
    np.testing.assert_allclose(scanned(params, image), run(params, image), atol=1e-5)


@pytest.mark.thorough
def test_rotary_positions_are_relative(image):
    """Coordinates that are all moved alike change nothing; a cls token before the grid has none."""
    model, params, run = made(rotary=Rope())
    assert jax.tree.structure(params) == jax.tree.structure(made()[1])
    assert float(jnp.max(jnp.abs(run(params, image) - made()[2](params, image)))) > 1e-4
    x = jax.random.normal(jax.random.key(2), (2, 6, 16))
    layer = MultiHeadAttention(2, rotary=Rope())
    variables = jax.jit(layer.init)(jax.random.key(0), x, at=jnp.zeros((6, 2)))
    apply = jax.jit(layer.apply)
    at = jax.random.uniform(jax.random.key(3), (6, 2))
    here = apply(variables, x, at=at)
    np.testing.assert_allclose(apply(variables, x, at=at + 2.5), here, atol=1e-5)
    assert float(jnp.max(jnp.abs(apply(variables, x, at=at * 2) - here))) > 1e-4
    np.testing.assert_allclose(apply(variables, x, at=jnp.zeros((5, 2))), apply(variables, x, at=0 * at), atol=1e-6)
    scanned = jax.jit(lambda p, x: model.clone(scan=True).apply({"params": p}, x))
    np.testing.assert_allclose(scanned(params, image), run(params, image), atol=1e-5)


@pytest.mark.thorough
def test_rotary_positions_of_a_text_are_those_of_decoding():
    """Step by step with a cache, as all at once."""
    fields = {"vocab_size": 11, "length": 6, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 24}
    tower = models.TextTransformer(**fields, rotary=Rope())
    text = jnp.asarray([[1, 5, 3, 7, 2, 4]], jnp.int32)
    params = jax.jit(tower.init)(jax.random.key(0), text)["params"]
    whole = jax.jit(tower.apply)({"params": params}, text).tokens

    @jax.jit
    def step(kept, token, start):
        cache = models.text.KVCache(start, 6)
        return tower.apply({"params": params, **kept}, token, cache, method="step", mutable=["cache"])

    kept, found = {}, []
    for i in range(6):
        out, kept = step(kept, text[:, i : i + 1], jnp.int32(i))
        found.append(out)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), whole, atol=1e-5)
    plain = jax.jit(models.TextTransformer(**fields).apply)({"params": params}, text).tokens
    assert float(jnp.max(jnp.abs(plain - whole))) > 1e-4


def test_a_term_of_the_logits(rng, image):
    q, k, v, bias = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in [(2, 5, 3, 4)] * 3 + [(1, 3, 5, 5)])
    logits = np.einsum("bnke,bmke->bknm", q, k) / 2 + np.asarray(bias)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    got = jax.jit(functools.partial(attention, bias=bias))(q, k, v)
    np.testing.assert_allclose(got, np.einsum("bknm,bmke->bnke", weights, v), atol=1e-6)
    _, params, run = made(logit_bias=Alibi())
    assert params["encoder"]["block_1"]["attention"]["logit_bias"]["slope"].shape == (2,)
    zero = jax.tree_util.tree_map_with_path(lambda path, x: 0 * x if "slope" in str(path) else x, params)
    assert float(jnp.max(jnp.abs(run(zero, image) - run(params, image)))) > 1e-4


@pytest.mark.thorough
def test_a_reducer_reads_what_cls_attends_to(image):
    model, params, run = made(reduce=KeepMostAttended(0, 4))
    found = jax.jit(lambda p, x: model.apply({"params": p}, x, method="features"))(params, image)
    assert found.tokens.shape == (2, 5, 16) and run(params, image).shape == (2, 3)
    assert jax.tree.structure(params) == jax.tree.structure(made()[1])
    all_of_them, _, everything = made(reduce=KeepMostAttended(1, 6))
    np.testing.assert_allclose(everything(params, image), made()[2](params, image), atol=1e-5)  # cls sees no order
    assert all_of_them.clone(remat="full").apply({"params": params}, image).shape == (2, 3)
    with pytest.raises(UserError, match="those of this model differ; set scan=False"):
        model.clone(scan=True).apply({"params": params}, image)


def test_merged_tokens_weigh_as_many_as_they_are():
    """Tokens that are equal in pairs, merged, and then attended to in proportion to their size."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    twice = jnp.repeat(x, 2, axis=1)
    block = functools.partial(Block, heads=2, mlp_dim=12)
    plain = Encoder(2, block, final_norm=False)
    merging = Encoder(2, (functools.partial(block, reduce=functools.partial(MergePairs(), 0)), block), final_norm=False)
    params = jax.jit(plain.init)(jax.random.key(1), twice)
    out, size, _ = jax.jit(merging.apply)(params, twice)
    assert out.shape == (2, 3, 8) and (size == 2).all()
    np.testing.assert_allclose(jnp.repeat(out, 2, axis=1), jax.jit(plain.apply)(params, twice), atol=1e-5)
