"""Mixer against NumPy, and its options."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models

TINY = {"num_classes": 3, "patch": 4, "width": 6, "depth": 2, "token_dim": 5, "mlp_dim": 7}


def random_params(model, image):
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.3, jnp.float32), shapes)


def reference(p, image, epsilon):
    """Tolstikhin et al. 2021, eq. 1, in float64."""

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]

    def mlp(x, p):
        h = x @ p["mlp_in"]["kernel"] + p["mlp_in"]["bias"]
        h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        return h @ p["mlp_out"]["kernel"] + p["mlp_out"]["bias"]

    b, h, w, c = image.shape
    x = image.reshape(b, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h * w // 16, 16 * c)
    x = x @ p["patch"]["kernel"].reshape(16 * c, -1) + p["patch"]["bias"]
    for i in range(TINY["depth"]):
        q = p["encoder"][f"block_{i}"]
        x = x + mlp(norm(x, q["norm_tokens"]).swapaxes(1, 2), q["tokens"]).swapaxes(1, 2)
        x = x + mlp(norm(x, q["norm_mlp"]), q["mlp"])
    x = norm(x, p["encoder"]["norm"]).mean(1)
    return x @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.parametrize("epsilon", [1e-6, 0.3])
def test_equals_the_paper_in_float64(rng, epsilon):
    image = rng.standard_normal((3, 8, 12, 2))
    model = models.create("mixer", **TINY, **({} if epsilon == 1e-6 else {"norm_epsilon": epsilon}))
    params = random_params(model, image)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    got = jax.jit(model.apply)({"params": params}, jnp.asarray(image, jnp.float32))
    np.testing.assert_allclose(got, reference(wide, image, epsilon), atol=1e-5)


@pytest.mark.thorough
def test_scan_equals_unrolled_with_dropout(rng):
    image = jnp.asarray(rng.standard_normal((2, 8, 8, 3)), jnp.float32)
    model = models.create("mixer", **TINY, dropout=0.2, drop_path=0.2)
    params, rngs = random_params(model, image), {"dropout": jax.random.key(3)}

    def run(model):
        return jax.jit(lambda p: model.apply({"params": p}, image, train=True, rngs=rngs))(params)

    np.testing.assert_allclose(run(model), run(model.clone(scan=True)), atol=1e-5)
    assert float(jnp.max(jnp.abs(run(model) - jax.jit(model.apply)({"params": params}, image)))) > 1e-2
