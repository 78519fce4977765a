"""Sparse maps: values and gradients from their formulas in float64, what an optimizer leaves, what is stored."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import config
from vit_jax.layers.linear import Dense
from vit_jax.layers.linear.sparse24 import Packed24, Sparse24, fake_quant, mask24, mask_distance, masked, prune
from vit_jax.layers.mlp import MLP
from vit_jax.types import UserError

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def normal(rng, *shape, dtype="float32"):
    return jnp.asarray(rng.standard_normal(shape), dtype)


def close(got, want, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=tolerance * max(np.abs(want).max(), 1e-30))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("lead", "features"), [((5,), 3), ((2, 3), 6), ((1, 1, 4), 1)])
def test_sr_ste_is_the_masked_product_and_the_papers_gradient(rng, dtype, lead, features):
    x, g = normal(rng, *lead, 12, dtype=dtype), normal(rng, *lead, features, dtype=dtype)
    kernel, bias = normal(rng, 12, features), normal(rng, features)
    module = Sparse24(lam=0.3)(features, dtype=dtype)

    @jax.jit
    def both(p, x):
        y, pull = jax.vjp(lambda p, x: module.apply({"params": p}, x), p, x)
        return y, pull(g)

    y, (grads, dx) = both({"kernel": kernel, "bias": bias}, x)
    mask = np.asarray(mask24(kernel))
    x64, w64, g64 = (np.asarray(a.astype(dtype), np.float64) for a in (x, kernel, g))
    assert y.dtype == dx.dtype == dtype and grads["kernel"].dtype == grads["bias"].dtype == jnp.float32
    close(y, x64 @ (mask * w64) + np.asarray(bias), TOLERANCE[dtype])
    close(dx, g64 @ (mask * w64).T, TOLERANCE[dtype])
    outer = x64.reshape(-1, 12).T @ g64.reshape(-1, features)
    close(grads["kernel"], outer + 0.3 * ~mask * np.asarray(kernel, np.float64))
    close(grads["bias"], g64.reshape(-1, features).sum(0))


def test_plain_straight_through_and_frozen_gradients(rng):
    kernel, g = normal(rng, 8, 5), normal(rng, 8, 5)
    pulled = lambda kernel, *how: jax.jit(lambda w: jax.vjp(lambda w: masked(w, *how), w)[1](g)[0])(kernel)  # noqa: E731
    np.testing.assert_array_equal(pulled(kernel, 0.0, "dynamic"), g)
    np.testing.assert_array_equal(pulled(kernel, 0.1, "frozen"), jnp.where(mask24(kernel), g, 0.0))
    few = prune(kernel).at[:4, 0].set(jnp.asarray([0, 0, 0, 2.0]))
    np.testing.assert_array_equal(pulled(few, 0.1, "frozen"), jnp.where(few != 0, g, 0.0))


@pytest.mark.parametrize("optimizer", [optax.adamw(0.1, weight_decay=0.2), optax.sgd(0.1, momentum=0.9)])
def test_frozen_zeros_stay_zero_and_dynamic_masks_move(rng, optimizer):
    x, target = normal(rng, 32, 16), normal(rng, 32, 4)
    dense = normal(rng, 16, 4)

    def train(spec, steps=12):
        module = spec(4)
        params = spec.from_dense(dense, jnp.zeros(4))
        loss = lambda p: jnp.mean(jnp.square(module.apply({"params": p}, x) - target))  # noqa: E731

        @jax.jit
        def step(params, state):
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        state, losses = optimizer.init(params), []
        for _ in range(steps):
            with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
                params, state, value = step(params, state)
            losses.append(float(value))
        assert losses[-1] < 0.8 * losses[0]
        return params["kernel"]

    start = mask24(dense)
    frozen = train(Sparse24(mask="frozen"))
    np.testing.assert_array_equal(frozen != 0, start)
    assert float(jnp.max(jnp.abs(frozen - prune(dense)))) > 0.1
    moved = train(Sparse24(lam=0.0))
    assert int(mask_distance(mask24(moved), start)) > 0
    assert bool(jnp.all(moved != 0))


def test_mask_distance_counts_positions():
    before = mask24(jnp.asarray([[4.0, 3, 2, 1]]).T)
    after = mask24(jnp.asarray([[4.0, 1, 2, 3]]).T)
    assert int(mask_distance(before, after)) == 2 and mask_distance(before, before).dtype == jnp.int32


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fake_quantisation_equals_numpy_and_counts_its_levels(rng, bits):
    w = np.asarray(rng.permuted(np.linspace(-1, 1, 999))[:, None] * np.array([1, 50, 1e-3]), np.float32)
    top = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(0, keepdims=True) / np.float32(top)
    quantised = jax.jit(lambda w: fake_quant(w, bits, 0))
    got = np.asarray(quantised(w))
    np.testing.assert_allclose(got, np.round(w / scale) * scale, rtol=1e-6)
    assert np.all(np.abs(got - w) <= 0.5001 * scale)
    assert [len(np.unique(column)) for column in got.T] == [2**bits - 1] * 3
    np.testing.assert_allclose(np.abs(got).max(0), np.abs(w).max(0), rtol=1e-6)
    whole = np.arange(-top, top + 1, dtype=np.float32)[:, None]  # its own levels: nothing to round
    np.testing.assert_array_equal(quantised(whole), whole)


def test_fake_quantisation_is_straight_through_up_to_the_clip(rng):
    w, g = jnp.asarray([[-9.0, -1.6, -0.2, 0, 1.4, 1.51, 9]]), normal(rng, 1, 7)
    scale = jnp.ones((1, 1))

    @functools.partial(jax.jit, static_argnums=2)
    def both(w, g, bits, *scale):
        y, pull = jax.vjp(lambda w: fake_quant(w, bits, 1, *scale), w)
        return y, pull(g)[0]

    y, slope = both(w, g, 2, scale)
    np.testing.assert_array_equal(y, [[-1, -1, 0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(slope, g * jnp.asarray([[0.0, 0, 1, 1, 1, 0, 0]]))
    np.testing.assert_array_equal(both(w, g, 4)[1], g)  # its own scale clips nothing
    zero = jnp.zeros((4, 2), jnp.bfloat16)
    assert fake_quant(zero, 4, 0).dtype == jnp.bfloat16 and not jnp.any(fake_quant(zero, 4, 0))
    for bits in (1, 9):
        with pytest.raises(UserError, match=f"bits={bits} is not allowed; give a number from 2 to 8"):
            fake_quant(w, bits, 1)


@pytest.mark.parametrize("mask", ["dynamic", "frozen"])
def test_weights_are_pruned_then_rounded_with_both_gradients(rng, mask):
    kernel = np.asarray(rng.standard_normal((16, 4)), np.float32)
    spec = Sparse24(lam=0.5, mask=mask, bits=4)
    params = spec.from_dense(jnp.asarray(kernel), None)
    pruned = np.where(mask24(kernel), kernel, 0)
    scale = np.abs(pruned).max(0, keepdims=True) / 7
    effective, _ = spec.to_dense(params)
    np.testing.assert_allclose(effective, np.round(pruned / scale) * scale, rtol=1e-5)
    assert np.all(np.asarray(effective)[pruned == 0] == 0)
    g = normal(rng, 16, 4)
    got = jax.jit(lambda w: jax.vjp(spec.effective, w)[1](g)[0])(params["kernel"])
    want = np.where(pruned != 0, g, 0) if mask == "frozen" else g + 0.5 * (kernel - pruned)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("spec", [Sparse24(), Sparse24(mask="frozen"), Sparse24(bits=8), Packed24("float32")])
def test_dense_and_back_is_the_same_map_as_the_layer(rng, spec):
    x, kernel, bias = normal(rng, 3, 20), normal(rng, 20, 6), normal(rng, 6)
    params = spec.from_dense(kernel, bias)
    dense, same = spec.to_dense(params)
    np.testing.assert_array_equal(same, bias)
    assert np.all(np.asarray(dense != 0).reshape(5, 4, 6).sum(1) <= 2)
    close(
        jax.jit(spec(6).apply)({"params": params}, x), np.asarray(x, np.float64) @ np.asarray(dense) + np.asarray(bias)
    )
    again = spec.to_dense(spec.from_dense(dense, None))
    np.testing.assert_allclose(again[0], dense, rtol=1e-6)
    assert again[1] is None and (getattr(spec, "bits", None) or np.array_equal(dense, prune(kernel)))


@pytest.mark.parametrize(("storage", "rounding"), [("float32", 0), ("bfloat16", 2**-8), ("int8", 0.5 / 127)])
def test_a_trained_layer_is_packed(rng, storage, rounding):
    trained = Sparse24()
    kernel, bias = trained.to_dense({"kernel": normal(rng, 24, 5), "bias": normal(rng, 5)})
    spec = Packed24(storage, implementation="xla")
    params = spec.from_dense(kernel, bias)
    assert {k: v.dtype.name for k, v in params.items() if k.startswith("kernel")} == {
        "kernel_values": storage,
        "kernel_index": "uint8",
        **({"kernel_scale": "float32"} if storage == "int8" else {}),
    }
    dense, _ = spec.to_dense(params)
    assert dense.dtype == jnp.float32
    assert np.all(np.abs(dense - kernel) <= rounding * 1.001 * np.abs(kernel).max(0))
    x = normal(rng, 2, 7, 24)
    close(
        jax.jit(spec(5).apply)({"params": params}, x), np.asarray(x, np.float64) @ np.asarray(dense) + np.asarray(bias)
    )


def test_eight_bit_training_and_int8_storage_are_one_grid(rng):
    trained = Sparse24(bits=8)
    kernel, _ = trained.to_dense({"kernel": normal(rng, 64, 9)})
    packed = Packed24("int8")
    np.testing.assert_allclose(packed.to_dense(packed.from_dense(kernel, None))[0], kernel, rtol=1e-6)


@pytest.mark.first(2)
@pytest.mark.parametrize("spec", [Sparse24(), Sparse24(mask="frozen"), Packed24(), Packed24("int8")])
def test_layers_start_sparse_named_and_boxed(spec):
    x = jnp.ones((2, 16))
    module = spec(8, name="map", axes=("mlp", "embed"), dtype="bfloat16", use_bias=False)
    boxed = jax.jit(module.init)(jax.random.key(3), x)["params"]
    axes = ("mlp", "embed") if isinstance(spec, Sparse24) else None
    for name, leaf in boxed.items():
        assert name.startswith("kernel") and leaf.names == (axes or (None,) * leaf.value.ndim)
    params = nn.meta.unbox(boxed)
    dense = Dense()(8, use_bias=False).init(jax.random.key(3), x)["params"]
    want, _ = spec.to_dense(spec.from_dense(nn.meta.unbox(dense)["kernel"], None))
    np.testing.assert_array_equal(spec.to_dense(params)[0], want)  # as a dense layer starts, pruned
    assert jax.jit(module.apply)({"params": params}, x).dtype == jnp.bfloat16
    assert "bias" in jax.jit(spec(8).init)(jax.random.key(0), x)["params"]
    if spec == Sparse24(mask="frozen"):
        assert int(jnp.sum(params["kernel"] == 0)) == 64


def test_specs_are_values_and_build_an_mlp(rng):
    table = Annotated[Any, config.Choice({"sparse24": Sparse24, "packed24": Packed24})]
    assert config.parse(table, "sparse24(mask='frozen', bits=4)") == Sparse24(mask="frozen", bits=4)
    assert hash(config.parse(table, "packed24('int8')")) == hash(Packed24("int8"))
    x = normal(rng, 2, 5, 8)
    sparse, packed = MLP(12, linear=Sparse24()), MLP(12, linear=Packed24("float32"))
    params = nn.meta.unbox(jax.jit(sparse.init)(jax.random.key(0), x)["params"])
    assert {k: sorted(v) for k, v in params.items()} == {n: ["bias", "kernel"] for n in ("mlp_in", "mlp_out")}
    small = {k: packed.linear.from_dense(*sparse.linear.to_dense(v)) for k, v in params.items()}
    close(jax.jit(packed.apply)({"params": small}, x), np.asarray(jax.jit(sparse.apply)({"params": params}, x)))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"lam": -1.0}, "lam=-1.0 is not allowed; give a number from 0"),
        ({"lam": float("nan")}, "lam=nan is not allowed"),
        ({"mask": "fixed"}, "mask='fixed' is not allowed; give 'dynamic' or 'frozen'"),
        ({"bits": 1}, "bits=1 is not allowed; give a number from 2 to 8"),
    ],
)
def test_wrong_fields_are_a_sentence(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        Sparse24(**fields)


def test_inputs_without_groups_are_a_sentence(rng):
    for spec in (Sparse24(), Sparse24(mask="frozen"), Packed24()):
        with pytest.raises(UserError, match="no groups of 4 along its input"):
            spec.from_dense(normal(rng, 49, 8), None)
        with pytest.raises(UserError, match="no groups of 4 along its input"):
            jax.jit(spec(8).init)(jax.random.key(0), jnp.ones((1, 49)))
