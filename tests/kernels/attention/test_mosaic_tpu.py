"""The TPU kernel against the definition in float64, what it refuses, and the real compiler, which needs no TPU."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models, sharding
from vit_jax.kernels import tiles
from vit_jax.kernels.attention import mosaic_tpu, reference
from vit_jax.kernels.attention.rotation import Rotation
from vit_jax.layers.attention import MultiHeadAttention
from vit_jax.layers.rotary import Rope
from vit_jax.types import UserError

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
CASES = {  # images, tokens, heads, channels of a head; causal; blocks
    "pairs of heads": ((2, 37, 4, 64), False, 1),
    "an odd number": ((1, 19, 3, 64), False, 1),
    "whole registers": ((1, 16, 2, 128), True, 1),
    "around their ends": ((1, 9, 8, 80), True, 1),
    "small heads": ((2, 5, 3, 16), True, 1),
    "more keys than lanes": ((1, 131, 2, 64), True, 1),
    "blocks": ((1, 7, 4, 64), False, 4),
    "blocks around the ends": ((1, 7, 3, 40), True, 2),
}


def both(heads, causal, qkv, g, blocks=1, key_bias=None, rotation=None):
    options = {"blocks": blocks, "key_bias": key_bias, "rotation": rotation}
    run = functools.partial(mosaic_tpu.run, heads=heads, causal=causal, **options)
    y, pull = jax.vjp(run, qkv)
    return y, *pull(g)


@pytest.mark.first(3)
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("case", "dtype"), [*((case, "float32") for case in CASES), ("pairs of heads", "bfloat16")])
def test_value_and_gradient_equal_float64(rng, case, dtype):
    (images, tokens, heads, size), causal, blocks = CASES[case]
    qkv = jnp.asarray(rng.standard_normal((images, tokens, 3 * heads * size)), dtype)
    g = jnp.asarray(rng.standard_normal((images, tokens, heads * size)), dtype)
    got = jax.jit(functools.partial(both, heads, causal, blocks=blocks))(qkv, g)
    apart, there = (
        np.moveaxis(np.reshape(x, (images, tokens, blocks, heads, -1, size // blocks)), 2, 4) for x in (qkv, g)
    )
    apart, there = apart.reshape(qkv.shape), there.reshape(g.shape)
    want = reference.attention(apart, heads, causal=causal), reference.gradient(apart, there, heads, causal=causal)
    want = [np.moveaxis(np.reshape(x, (images, tokens, heads, -1, blocks, size // blocks)), 4, 2) for x in want]
    want = [np.reshape(x, (images, tokens, -1)) for x in want]
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.shape) == (dtype, b.shape)
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=TOLERANCE[dtype] * np.abs(b).max())


@pytest.mark.first(1)
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("shape", "causal"), [((2, 11, 2, 64), True), ((1, 131, 3, 16), False)])
def test_a_bias_of_the_keys(rng, shape, causal):
    """In value and gradient, of which it has none itself; a key that counts for nothing is not there."""
    images, tokens, heads, size = shape
    qkv, g = (rng.standard_normal((images, tokens, n * heads * size)).astype("float32") for n in (3, 1))
    bias = np.log(rng.integers(1, 40, (images, tokens))).astype("float32")
    bias[:, 3] = -1e30
    got = jax.jit(lambda q, g, b: both(heads, causal, q, g, key_bias=b))(qkv, g, bias)
    options = {"causal": causal, "key_bias": bias}
    want = reference.attention(qkv, heads, **options), reference.gradient(qkv, g, heads, **options)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
    assert not jax.grad(lambda b: jnp.sum(mosaic_tpu.run(qkv, heads, causal, key_bias=b)))(bias).any()


def rotation_of(rng, tokens, size, pair):
    """Angles of any kind, the first token at rest; and the same as matrices."""
    angle = np.concatenate([np.zeros((1, size // 2)), rng.uniform(-4, 4, (tokens - 1, size // 2))])
    pairs = np.arange(size).reshape(-1, 2, pair).swapaxes(1, 2).reshape(-1, 2)
    cos, sin, turns = np.zeros((tokens, size)), np.zeros((tokens, size)), np.zeros((tokens, size, size))
    for i, (a, b) in enumerate(pairs):
        c, s = np.cos(angle[:, i]), np.sin(angle[:, i])
        cos[:, a], cos[:, b], sin[:, a], sin[:, b] = c, c, -s, s
        turns[:, a, a], turns[:, a, b], turns[:, b, a], turns[:, b, b] = c, -s, s, c
    return Rotation(jnp.asarray(cos, jnp.float32), jnp.asarray(sin, jnp.float32), pair), turns


@pytest.mark.first(1)
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("shape", "pair", "blocks", "dtype"),
    [
        ((2, 11, 2, 64), 32, 1, "float32"),
        ((1, 9, 8, 80), 1, 1, "float32"),
        ((1, 131, 3, 16), 8, 1, "float32"),
        ((1, 7, 4, 64), 1, 4, "float32"),
        ((2, 11, 2, 64), 1, 1, "bfloat16"),
    ],
)
def test_queries_and_keys_that_turn(rng, shape, pair, blocks, dtype):
    """In value and gradient, whichever channels are a pair and wherever a head lies."""
    images, tokens, heads, size = shape
    rotation, turns = rotation_of(rng, tokens, size, pair)
    qkv, g = (jnp.asarray(rng.standard_normal((images, tokens, n * heads * size)), dtype) for n in (3, 1))
    got = jax.jit(lambda q, g, r: both(heads, False, q, g, blocks, rotation=r))(qkv, g, rotation)
    apart = lambda x: np.moveaxis(  # noqa: E731
        np.reshape(np.asarray(x, np.float64), (images, tokens, blocks, heads, -1, size // blocks)), 2, 4
    ).reshape(x.shape)
    want = [
        reference.attention(apart(qkv), heads, turns=turns),
        reference.gradient(apart(qkv), apart(g), heads, turns=turns),
    ]
    want = [np.moveaxis(np.reshape(x, (images, tokens, heads, -1, blocks, size // blocks)), 4, 2) for x in want]
    for a, b in zip(got, want, strict=True):
        b = np.reshape(b, a.shape)
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=TOLERANCE[dtype] * np.abs(b).max())


@pytest.mark.usefixtures("interpreted_simply")
@pytest.mark.parametrize(("config", "images", "heads"), [((2, 2, 2), 8, 4), ((4, 1, 2), 6, 3)])
def test_each_device_has_its_images_and_heads(rng, config, images, heads):
    mesh = sharding.make_mesh(sharding.MeshConfig(*config), jax.devices())
    qkv, g = (rng.standard_normal((images, 5, n * heads * 16)).astype("float32") for n in (3, 1))
    bias = rng.standard_normal((images, 5)).astype("float32")
    with jax.set_mesh(mesh):
        got = jax.jit(lambda *args: both(heads, False, *args[:2], key_bias=args[2]))(qkv, g, bias)
    want = (reference.attention(qkv, heads, key_bias=bias), reference.gradient(qkv, g, heads, key_bias=bias))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.first(1)
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("rotary", [Rope(10_000.0, "interleaved"), Rope(), None])
def test_the_layer_is_the_same(rng, rotary):
    x, at = rng.standard_normal((1, 9, 32)).astype("float32"), Rope().coordinates(2, 4)
    layers = [MultiHeadAttention(2, causal=True, implementation=n, rotary=rotary) for n in ("xla", "mosaic_tpu")]
    params = jax.jit(lambda k: layers[0].init(k, x, at=at))(jax.random.key(0))
    run = jax.jit(jax.value_and_grad(lambda p, layer: jnp.sum(jnp.sin(layer.apply(p, x, at=at)))), static_argnums=1)
    want, got = (run(params, layer) for layer in layers)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


@pytest.mark.parametrize(
    ("shape", "heads", "reason"),
    [
        ((0, 197, 2304), 12, "there are no rows"),
        ((8, 197, 3 * 16 * 160), 16, "heads have 160 channels, more than 128"),
        ((8, 197, 3 * 4 * 12), 4, "heads have 12 channels, not a multiple of 8"),
        ((8, 1025, 3072), 16, "2 heads of 1025 tokens have 2,377,728 logits, more than the 1,048,576 it is"),
        ((8, 197, 2304), 12, None),
        ((8, 577, 3072), 16, None),
    ],
)
def test_what_it_refuses(shape, heads, reason):
    found = mosaic_tpu.unsupported_reason(jax.ShapeDtypeStruct(shape, "bfloat16"), heads, False)
    assert found == reason or (reason and found.startswith(reason))


def test_heads_of_a_program_fill_registers_and_divide_all():
    assert [mosaic_tpu._heads(*sizes) for sizes in ((16, 64, 197), (16, 64, 577), (3, 64, 197), (16, 72, 256))] == [
        16, 2, 3, 16,
    ]  # fmt: skip


def test_pinned_heads_are_whole_pieces():
    with tiles.pinned(attention=4):
        assert mosaic_tpu._heads(12, 64, 197) == 4
        with pytest.raises(UserError, match=r"4 of 6 heads .* pin one of \[2, 6\]"):
            mosaic_tpu._heads(6, 64, 197)


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize(("tokens", "heads", "size", "causal"), [(197, 3, 64, False), (77, 8, 80, True)])
def test_the_compiler_takes_it(tpu_chips, topology, tokens, heads, size, causal):
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2), tpu_chips(topology))
    place = sharding.data_sharding(mesh)
    args = [jax.ShapeDtypeStruct((8, tokens, n * heads * size), "bfloat16", sharding=place) for n in (3, 1)]
    bias = jax.ShapeDtypeStruct((8, tokens), "float32", sharding=place)
    run = lambda *args: both(heads, causal, *args[:2], key_bias=None if causal else args[2])  # noqa: E731
    with jax.set_mesh(mesh):
        text = jax.jit(run).lower(*args, bias).compile().as_text()
    assert "attention_forward" in text and "attention_backward" in text and "all-" not in text


@pytest.mark.parametrize("name", ["vit_b16", "dinov3_vits16"])
def test_a_vit_for_a_tpu_copies_nothing_for_its_attention(tpu_chips, name):
    mesh = sharding.make_mesh(sharding.MeshConfig(), tpu_chips("v5e:2x2")[:1])
    whole = jax.sharding.NamedSharding(mesh, jax.P())
    model = models.create(name, depth=1, dtype="bfloat16")
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))))
    place = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole)  # noqa: E731
    args = jax.tree.map(place, (shapes, jax.ShapeDtypeStruct((64, 224, 224, 3), "bfloat16")))
    with jax.set_mesh(mesh):
        text = jax.jit(model.apply).lower(*args).compile().as_text()
    assert "attention_forward" in text
    assert not [
        line
        for line in text.splitlines()
        if "/attention/" in line and "[64," in line and (" copy(" in line or "transpose(" in line)
    ]
