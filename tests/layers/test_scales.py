"""Scales of an image: tiles by their definition, one scale is the model itself, features against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.layers.embed import resize_matrix
from vit_jax.layers.scales import features, merge, pooled, split
from vit_jax.models.base import Features
from vit_jax.types import UserError


def test_tiles_are_parts_of_the_image_and_come_together_again(rng):
    x = rng.normal(size=(2, 6, 9, 4)).astype(np.float32)
    parts = split(x, 3)
    for i in range(3):
        for j in range(3):
            np.testing.assert_array_equal(parts[2 * (3 * i + j) :][:2], x[:, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3])
    np.testing.assert_array_equal(merge(parts, 3), x)
    np.testing.assert_allclose(pooled(jnp.asarray(x), 3)[0, 1, 2], x[0, 3:6, 6:9].mean((0, 1)), rtol=1e-6)


def encode(x):
    """Every pixel is a token, behind one that is the mean of the tile; pooled are the squares' mean."""
    cls = jnp.mean(x, (1, 2))[:, None]
    return Features(jnp.concatenate([cls, x.reshape(len(x), -1, x.shape[-1])], 1), jnp.mean(x * x, (1, 2)))


def test_one_scale_is_the_model_itself(rng):
    calls = []
    x = jnp.ones((1, 2, 2, 3))
    assert features(lambda image: calls.append(image) or "found", x, (1.0,), 0) == "found"
    assert calls[0] is x


@pytest.mark.first(1)
@pytest.mark.parametrize("scales", [(1, 2), (0.5, 1.5, 1.0)])
def test_features_of_pixels_are_the_resized_image_averaged(rng, scales):
    x = rng.normal(size=(2, 4, 4, 3))
    side = round(4 * scales[0])
    run = jax.jit(functools.partial(features, encode, scales=scales, prefix=1))
    got = run(x.astype(np.float32))
    grids, befores, wholes = [], [], []
    for scale in scales:
        k = round(scale / scales[0])
        m = resize_matrix(4, k * side, "bicubic_plain")
        y = np.einsum("ih,jw,bhwc->bijc", m, m, x)
        grids.append(y.reshape(2, side, k, side, k, 3).mean((2, 4)).reshape(2, -1, 3))
        befores.append(y.mean((1, 2)))  # all tiles are of one size
        wholes.append((y * y).mean((1, 2)))
    np.testing.assert_allclose(got.tokens[:, 1:], np.concatenate(grids, -1), atol=1e-5)
    np.testing.assert_allclose(got.tokens[:, 0], np.concatenate(befores, -1), atol=1e-5)
    np.testing.assert_allclose(got.pooled, np.concatenate(wholes, -1), atol=1e-5)


def test_a_model_has_the_same_parameters_but_for_the_head():
    fields = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "num_classes": 5}
    image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    shapes = {}
    for scales in ((1.0,), (1.0, 2.0)):
        model = models.create("vit", **fields, scales=scales)
        found = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
        out = jax.eval_shape(lambda p, x, m=model: m.apply({"params": p}, x, method="features"), found, image)
        shapes[len(scales)] = {k: jax.tree.map(jnp.shape, v) for k, v in found.items()}, out
    (one, plain), (two, wide) = shapes[1], shapes[2]
    assert {k: v for k, v in one.items() if k != "head"} == {k: v for k, v in two.items() if k != "head"}
    assert plain.tokens.shape == (2, 5, 16) and wide.tokens.shape == (2, 5, 32) and wide.pooled.shape == (2, 32)


@pytest.mark.parametrize(
    ("shape", "scales", "words"),
    [
        ((8, 8), (1, 1.5), "not whole multiples of the first"),
        ((8, 8), (), "not whole multiples"),
        ((8, 12), (1, 2), "take square images whose side they divide, not 8x12"),
        ((9, 9), (0.5, 1), "not 9x9"),
    ],
)
def test_what_does_not_fit_is_a_sentence(shape, scales, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(lambda x: features(encode, x, scales, 1), jnp.zeros((1, *shape, 3)))
    with pytest.raises(UserError, match="reduce leaves none"):
        jax.eval_shape(lambda x: features(encode, x, (1, 2), 2), jnp.zeros((1, 8, 8, 3)))
