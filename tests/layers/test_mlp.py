"""Activations against SciPy-free float64 formulas; the MLP against its two products."""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config
from vit_jax.kernels.monarch_mlp import monarch_mlp
from vit_jax.kernels.topk_mlp import reference
from vit_jax.layers.linear import Dense, matmul
from vit_jax.layers.linear.low_rank import LowRank
from vit_jax.layers.linear.monarch import Monarch
from vit_jax.layers.mlp import ACTIVATIONS, MLP, Activation, TopK, TopKLinear, activate
from vit_jax.types import UserError

FORMULAS = {
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_activation_and_slope_equal_the_formula(name):
    assert set(FORMULAS) == set(ACTIVATIONS)
    f, x, h = FORMULAS[name], np.linspace(-4.1, 4, 28), 1e-5
    got, slope = jax.jit(jax.vmap(jax.value_and_grad(lambda v: activate(name, v))))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, [f(v) for v in x], atol=2e-6)
    np.testing.assert_allclose(slope, [(f(v + h) - f(v - h)) / (2 * h) for v in x], atol=1e-5)


def test_half_precision_is_rounded_once():
    x = jnp.linspace(-3, 3, 41, dtype=jnp.bfloat16)
    gelu = jax.jit(functools.partial(activate, "gelu"))
    y = gelu(x)
    slope = jax.eval_shape(lambda x: jax.vjp(gelu, x)[1](y)[0], x)
    assert y.dtype == slope.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, gelu(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_the_gradient_keeps_only_the_input():
    def loss(kernels, x):
        for kernel in kernels:
            x = activate("gelu", x @ kernel)
        return jnp.sum(x)

    kernels, x = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 128, 128), (2048, 128)))
    program = jax.jit(jax.grad(loss)).lower(kernels, x).compile()
    found = program.memory_analysis().temp_size_in_bytes / (2048 * 128 * 4)
    assert found < 8  # four inputs, three outputs for the products, kernels; with erf of each it is 10.25


def test_unknown_activation_names_the_nearest():
    with pytest.raises(UserError, match="unknown activation 'gelo'; did you mean 'gelu'"):
        activate("gelo", jnp.ones(2))


def test_mlp_equals_two_products_and_drops_with_a_key_only(rng):
    x = jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32)
    module = MLP(10, activation="relu", dropout=0.5)
    boxed = jax.jit(module.init)(jax.random.key(0), x)["params"]
    assert boxed["mlp_in"]["kernel"].names == ("embed", "mlp") and boxed["mlp_out"]["kernel"].names == ("mlp", "embed")
    p = nn.meta.unbox(boxed)
    hidden = np.maximum(np.asarray(x) @ p["mlp_in"]["kernel"] + p["mlp_in"]["bias"].reshape(1, 1, -1), 0)
    want = hidden @ p["mlp_out"]["kernel"] + p["mlp_out"]["bias"].reshape(1, 1, -1)
    np.testing.assert_allclose(jax.jit(module.apply)({"params": p}, x), want, atol=1e-5)
    dropped = jax.jit(module.apply)({"params": p}, x, key=jax.random.key(1))
    assert float(jnp.max(jnp.abs(dropped - want))) > 1e-2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "k"), [((3, 5, 17), 4), ((7,), 1), ((2, 9), 9), ((2, 9), 30)])
def test_each_token_keeps_its_k_largest_units(rng, dtype, shape, k):
    x = jnp.asarray(rng.standard_normal(shape).round(1), dtype)  # rounded: there are ties

    @jax.jit
    def both(x):
        y, pull = jax.vjp(lambda x: activate(TopK(k), x), x)
        return y, pull(jnp.full_like(y, 3))[0]

    y, slope = both(x)
    for row, kept, g in zip(*(np.asarray(a, np.float64).reshape(-1, shape[-1]) for a in (x, y, slope)), strict=True):
        order = np.argsort(-row, kind="stable")[:k]
        want = np.zeros_like(row)
        want[order] = np.maximum(row[order], 0)
        np.testing.assert_array_equal(kept, want)
        np.testing.assert_array_equal(g, 3 * (want > 0))
    assert y.dtype == slope.dtype == dtype


def test_an_mlp_says_how_many_units_are_active(rng):
    x = jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32)
    for activation, share in ((TopK(2), 0.2), ("gelu", 1.0)):
        module = MLP(10, activation=activation)
        p = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x)["params"])
        p["mlp_in"]["bias"] += 5.0
        _, state = jax.jit(functools.partial(module.apply, mutable=["activity"]))({"params": p}, x)
        np.testing.assert_allclose(state["activity"]["active"][0], np.full((2, 3), share), rtol=1e-6)


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("k", "tokens", "dtype"),
    [
        (3, 1, "float32"),
        (3, 1, "bfloat16"),
        (20, 2, "float32"),
        (99, 3, "float32"),
        *(pytest.param(k, tokens, "float32", marks=pytest.mark.slow) for k, tokens in ((3, 40), (64, 3))),
        *(
            pytest.param(k, tokens, "bfloat16", marks=pytest.mark.slow)
            for k, tokens in ((3, 40), (20, 2), (64, 3), (99, 3))
        ),
    ],
)
def test_an_mlp_with_topk_equals_the_one_computed_by_hand(rng, dtype, k, tokens):
    x = jnp.asarray(rng.standard_normal((tokens, 6)), dtype)
    module = MLP(64, activation=TopK(k), dtype=dtype)
    plain = MLP(64, activation="relu", dtype=dtype)
    boxed, other = (jax.jit(m.init)(jax.random.key(0), x)["params"] for m in (module, plain))
    jax.tree.map(np.testing.assert_array_equal, nn.meta.unbox(boxed), nn.meta.unbox(other))
    assert jax.tree.structure(boxed) == jax.tree.structure(other)  # also the names of axes
    one, two = (nn.meta.unbox(boxed)[name] for name in ("mlp_in", "mlp_out"))
    z = np.asarray(matmul(x, one["kernel"], one["bias"]), np.float64)  # rounded alike: the kept units are the same
    want = reference.product(reference.topk(z, k), two["kernel"].astype(dtype), two["bias"])
    got = np.asarray(jax.jit(module.apply)({"params": nn.meta.unbox(boxed)}, x), np.float64)
    np.testing.assert_allclose(got, want, atol={"float32": 1e-5, "bfloat16": 2e-2}[dtype] * np.abs(want).max())


@pytest.mark.parametrize("tokens", [1, 40])  # one token gathers, forty do not
def test_gradients_of_an_mlp_with_topk(rng, tokens):
    x = jnp.asarray(rng.standard_normal((tokens, 6)), jnp.float32)
    module = MLP(64, activation=TopK(5))
    p = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x)["params"])
    g = rng.standard_normal((tokens, 6))
    run = lambda p, x: module.apply({"params": p}, x)  # noqa: E731
    dp, dx = jax.jit(lambda p, x, g: jax.vjp(run, p, x)[1](g))(p, x, jnp.asarray(g, jnp.float32))
    one, two = p["mlp_in"], p["mlp_out"]
    h = reference.topk(reference.product(x, one["kernel"], one["bias"]), 5)
    dh, d2, db2 = reference.gradients(h, two["kernel"], g)
    want_dx, d1, db1 = reference.gradients(x, one["kernel"], np.where(h > 0, dh, 0))
    pairs = (dx, want_dx), *zip(jax.tree.leaves(dp), (db1, d1, db2, d2), strict=True)
    for got, want in pairs:
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_dropout_behind_topk(rng):
    x = jnp.asarray(rng.standard_normal((1, 6)), jnp.float32)
    module = MLP(64, activation=TopK(8), dropout=0.5)
    p = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x)["params"])
    mixed = {**p, "mlp_out": {"kernel": jnp.eye(64, 6), "bias": jnp.zeros(6)}}
    apply = jax.jit(module.apply)
    whole = np.asarray(apply({"params": mixed}, x))
    ratios = [apply({"params": mixed}, x, key=jax.random.key(i))[whole > 0] / whole[whole > 0] for i in range(9)]
    np.testing.assert_allclose(np.unique(np.round(np.concatenate(ratios), 3)), [0, 2], atol=1e-3)


def test_one_token_reads_only_the_rows_of_its_units(rng):
    x = jnp.asarray(rng.standard_normal((1, 6)), jnp.float32)
    module = MLP(64, activation=TopK(4))
    p = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x)["params"])
    z = matmul(x, p["mlp_in"]["kernel"], p["mlp_in"]["bias"])
    kept = reference.topk(np.asarray(z), 4)[0] > 0
    apply = jax.jit(module.apply)
    want = apply({"params": p}, x)
    p["mlp_out"]["kernel"] = jnp.where(kept[:, None], p["mlp_out"]["kernel"], jnp.nan)
    np.testing.assert_array_equal(apply({"params": p}, x), want)


def test_only_a_dense_map_behind_topk_skips_rows():
    linear = TopK(3).after(Dense())(4, name="map", use_bias=False)
    assert isinstance(linear, TopKLinear) and linear.k == 3 and linear.name == "map"
    assert set(jax.jit(linear.init)(jax.random.key(0), jnp.ones((1, 5)))["params"]) == {"kernel"}
    assert TopK(3).after(LowRank(2)) == LowRank(2)


def test_topk_is_read_from_text():
    assert config.parse(Activation, "topk(128)") == config.parse(Activation, {"name": "topk", "k": 128}) == TopK(128)
    assert config.parse(Activation, "gelu_tanh") == "gelu_tanh"
    for text, message in {
        "gelo": "'gelo' is not allowed; did you mean 'gelu'",
        "topk": "write topk\\(128\\)",
        "topk(1.5)": "expected int",
        "topk(0)": "k=0 is not allowed",
        "topk(1, 2)": "too many",
        3: "3 is not allowed; allowed: gelu",
    }.items():
        with pytest.raises(UserError, match=message):
            config.parse(Activation, text)


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("fields", "spec", "at_once"),
    [
        ({}, Monarch(2), True),
        ({"dropout": 0.5}, Monarch(2), False),
        ({"activation": TopK(3)}, Monarch(2), False),
        ({}, Monarch(2, "xla"), False),  # the user named who runs
        ({}, Monarch(3), False),  # blocks are filled up
        ({}, Dense(), False),
    ],
)
def test_maps_of_blocks_run_at_once_where_nothing_is_between(rng, monkeypatch, fields, spec, at_once):
    seen = []
    monkeypatch.setattr("vit_jax.layers.mlp.monarch_mlp", lambda *args: seen.append(args) or monarch_mlp(*args))
    x = jnp.asarray(rng.standard_normal((2, 3, 8)), jnp.float32)
    module = MLP(16, linear=spec, **fields)
    params = nn.meta.unbox(module.init(jax.random.key(0), x))
    seen.clear()
    y = module.apply(params, x, key=jax.random.key(1))
    assert bool(seen) == at_once
    if at_once:
        maps = (spec.to_dense(params["params"][name]) for name in ("mlp_in", "mlp_out"))
        (a, b), (c, d) = ((np.asarray(kernel), np.asarray(bias)) for kernel, bias in maps)
        hidden = activate("gelu", jnp.asarray(np.asarray(x) @ a + b.reshape(1, 1, -1)))
        np.testing.assert_allclose(y, np.asarray(hidden) @ c + d.reshape(1, 1, -1), atol=1e-5)
    seen.clear()
    module.apply(params, x, mutable=["activity"])
    assert not seen  # somebody asks for the hidden layer
