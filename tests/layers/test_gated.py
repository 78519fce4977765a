"""Gated MLPs against float64 NumPy, their sizes, and what a configuration says of them."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config, models
from vit_jax.layers.gated import FFNSpec, Gated, GatedMLP
from vit_jax.layers.linear.monarch import Monarch
from vit_jax.types import UsageError

SLOPES = {"silu": lambda x: x / (1 + np.exp(-x)), "gelu": np.vectorize(lambda x: x * (1 + math.erf(x / 2**0.5)) / 2)}


def wide(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.mark.parametrize(("activation", "norm"), [("silu", None), ("gelu", None), ("silu", 1e-3)])
def test_equals_float64(rng, activation, norm):
    x = jnp.asarray(rng.standard_normal((2, 3, 6)), jnp.float32)
    module = GatedMLP(10, activation=activation, norm_epsilon=norm)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), x)["params"])
    params = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape), jnp.float32), shapes)
    p = wide(params)
    gate, value = (wide(x) @ p[name]["kernel"] + p[name]["bias"] for name in ("mlp_gate", "mlp_in"))
    h = SLOPES[activation](gate) * value
    if norm is not None:
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + norm)
        h = h * p["norm"]["scale"] + p["norm"]["bias"]
    got = jax.jit(module.apply)({"params": params}, x)
    np.testing.assert_allclose(got, h @ p["mlp_out"]["kernel"] + p["mlp_out"]["bias"], atol=1e-4)


def test_sizes_are_aligned():
    """DINOv3's "plus" models (ratio 6) and its 7B (ratio 3), and hidden layers as they are given."""
    sizes = [(384 * 6, 8), (1280 * 6, 8), (4096 * 3, 64), (2048, None), (100, 8)]
    assert [Gated(align)(n, name="x").hidden for n, align in sizes] == [1536, 5120, 8192, 2048, 72]


@pytest.mark.thorough
def test_in_a_vit_with_structured_maps_dropout_and_scan(rng):
    fields = {"patch": 4, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "num_classes": 3, "activation": "silu"}
    model = models.create("vit", **fields, ffn="gated(8, 1e-6)", mlp_linear=Monarch(4), dropout=0.5)
    image = jnp.asarray(rng.standard_normal((2, 8, 8, 3)), jnp.float32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), image)["params"])
    assert set(params["encoder"]["block_0"]["mlp"]) == {"mlp_gate", "mlp_in", "mlp_out", "norm"}
    run = jax.jit(lambda m, p: m.apply({"params": p}, image, method="embed_image"), static_argnums=0)
    np.testing.assert_allclose(run(model.clone(scan=True, remat="full"), params), run(model, params), atol=1e-5)
    random = jax.jit(lambda p: model.apply({"params": p}, image, train=True, rngs={"dropout": jax.random.key(1)}))
    assert np.isfinite(random(params)).all()
    roles = model.roles(params)["encoder"]["block_0"]["mlp"]
    assert (roles["mlp_gate"]["bias"].kind, roles["norm"]["scale"].kind) == ("bias", "scale")


def test_of_a_configuration():
    assert config.parse(FFNSpec, "gated(align=8)", "ffn") == Gated(8)
    assert config.unparse(FFNSpec, Gated(norm_epsilon=1e-6)) == {"name": "gated", "align": None, "norm_epsilon": 1e-6}
    with pytest.raises(UsageError, match="did you mean 'gated'"):
        config.parse(FFNSpec, "gate", "ffn")
    with pytest.raises(UsageError, match="align=0 is not allowed"):
        config.parse(FFNSpec, "gated(0)", "ffn")
