"""M2-ViT against NumPy in float64, and its options."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models

TINY = dict(num_classes=3, patch=4, width=6, depth=2, mlp_dim=8, filter_features=5, filter_hidden=7)


def random_params(model, image):
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.3, jnp.float32), shapes)


def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def filters(p, n, d):
    time = np.linspace(0, 1, n)
    waves = np.outer(2 * np.pi * np.arange(n) / n, np.linspace(1e-4, 1, 2))
    x = np.concatenate([time[:, None], np.cos(waves), -np.sin(waves)], axis=1)
    for i in range(2):
        x = np.sin(p["frequency"] * (x @ p[f"hidden_{i}"]["kernel"] + p[f"hidden_{i}"]["bias"]))
    rate = np.linspace(-np.log(0.01) / 1.5, -np.log(0.01) / 0.3, d)
    return (x @ p["out"]["kernel"]) * np.exp(-np.outer(time, rate))


def long(x, p, prefix):
    n, d = x.shape[1:]
    ahead, behind = filters(p[f"{prefix}forward"], n, d), filters(p[f"{prefix}backward"], n, d)
    y = x * p[f"{prefix}skip"]
    for i in range(n):
        for m in range(n):
            y[:, i] += x[:, m] * (ahead[i - m] if m <= i else behind[m - i - 1])
    return y


def mixed(x, p, residual):
    n = x.shape[1]
    parts = x @ p["qkv"]["kernel"] + p["qkv"]["bias"]
    padded = np.concatenate([np.zeros_like(parts[:, :2]), parts], axis=1)
    parts = sum(padded[:, i : i + n] * p["short"][i] for i in range(3))
    first, second, value = np.split(parts, 3, axis=-1)
    y = second * long(value * first, p, "")
    if residual:
        y = y + long(x, p, "residual_")
    return y @ p["out"]["kernel"] + p["out"]["bias"]


def reference(p, image, residual):
    b, h, w, c = image.shape
    x = image.reshape(b, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h * w // 16, 16 * c)
    x = x @ p["patch"]["kernel"].reshape(16 * c, -1) + p["patch"]["bias"]
    for i in range(TINY["depth"]):
        q = p["encoder"][f"block_{i}"]
        x = x + mixed(norm(x, q["norm_mixer"]), q["mixer"], residual)
        h = norm(x, q["norm_mlp"]) @ q["mlp"]["mlp_in"]["kernel"] + q["mlp"]["mlp_in"]["bias"]
        h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        x = x + h @ q["mlp"]["mlp_out"]["kernel"] + q["mlp"]["mlp_out"]["bias"]
    return norm(x, p["encoder"]["norm"]).mean(1) @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.first(2)
@pytest.mark.parametrize(("residual", "how"), [(True, "monarch"), (False, "monarch"), (True, "fft"), (True, None)])
def test_equals_the_formulas_in_float64(rng, run, residual, how):
    image = rng.standard_normal((3, 8, 20, 2))
    model = models.create("monarch_mixer", **TINY, residual=residual, long_conv=how)
    params = random_params(model, image)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    want = reference(wide, image, residual)
    got = run(model, params, jnp.asarray(image, jnp.float32))
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def test_one_set_of_parameters_for_any_image_size():
    model = models.create("monarch_mixer", **TINY)
    shapes = [jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, s, s, 3)))["params"] for s in (8, 24)]
    assert shapes[0] == shapes[1]


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "options", [{"scan": True}, pytest.param({"remat": "full"}, marks=pytest.mark.slow), {"long_conv": "monarch"}]
)
def test_how_it_is_run_does_not_change_what_it_is(rng, options):
    image = jnp.asarray(rng.standard_normal((2, 12, 12, 3)), jnp.float32)
    model = models.create("monarch_mixer", **TINY)
    params = random_params(model, image)

    def loss(m):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(m.apply({"params": p}, image) ** 2)))(params)

    for a, b in zip(jax.tree.leaves(loss(model)), jax.tree.leaves(loss(model.clone(**options))), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * max(1e-3, float(jnp.max(jnp.abs(a)))))


@pytest.mark.thorough
def test_stochastic_depth_and_dropout_need_randomness_in_training_only(rng, run):
    image = jnp.asarray(rng.standard_normal((2, 8, 8, 3)), jnp.float32)
    model = models.create("monarch_mixer", **TINY, dropout=0.3, drop_path=0.3)
    params = random_params(model, image)
    calm = run(model, params, image)
    np.testing.assert_array_equal(calm, run(models.create("monarch_mixer", **TINY), params, image))
    moved = run(model, params, image, train=True, rngs={"dropout": jax.random.key(3)})
    assert float(jnp.max(jnp.abs(moved - calm))) > 1e-3


def test_size_of_the_published_model():
    """45 million with 1,000 classes (survey tables of M2); the short filters' biases and norms are not stated."""
    model = models.create("m2_vit_b16", residual=False)
    shapes = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x)["params"], *model.inputs(224))
    assert sum(x.size for x in jax.tree.leaves(nn.meta.unbox(shapes))) == pytest.approx(45e6, rel=0.07)
