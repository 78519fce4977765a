"""LookupViT by its equations in float64: two streams, one matrix of weights for both ways."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config, models
from vit_jax.layers.tokens.lookup import Lookup, Write
from vit_jax.layers.tokens.reduce import ReducerSpec
from vit_jax.models import cost
from vit_jax.models.describe import describe
from vit_jax.types import UsageError, UserError

FIELDS = {"num_classes": 3, "patch": 4, "width": 8, "depth": 2, "heads": 2, "mlp_dim": 12}
IMAGE = (2, 12, 20, 3)
"""3 x 5 patches."""


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def fewer(old, new):
    """Triangles as wide as the step, ``[new, old]``: bilinear, of a picture that becomes smaller."""
    step = old / new
    at = (np.arange(new)[:, None] + 0.5) * step - 0.5
    weights = np.maximum(0, 1 - np.abs(at - np.arange(old)) / step)
    return weights / weights.sum(1, keepdims=True)


def vit(model, params, image):
    """Logits ``[B, C]`` with ``reduce=lookup(...)``, image by image and head by head."""
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
    e, side = model.width // model.heads, model.reduce.grid

    def linear(p, x):
        return x @ p["kernel"].reshape(x.shape[-1], -1) + p["bias"]

    def norm(p, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + model.norm_epsilon) * p["scale"] + p["bias"]

    def mlp(p, x):
        y = linear(p["mlp_in"], x)
        return linear(p["mlp_out"], y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2)

    def parts(x, count):
        return np.moveaxis(x.reshape(len(x), model.heads, count, e), 2, 0)

    def joined(weights, v):
        return np.concatenate([w @ v[:, h] for h, w in enumerate(weights)], axis=1)

    def attend(q, k):
        return [softmax(q[:, h] @ k[:, h].T / math.sqrt(e)) for h in range(model.heads)]

    def one(image):
        h, w, _ = (s // model.patch for s in image.shape)
        x = image.reshape(h, model.patch, w, model.patch, 3).swapaxes(1, 2).reshape(h * w, -1)
        x = linear(p["patch"], x)
        x = np.concatenate([p["cls"][0], x]) + p["position"]["embedding"][0]
        first, x = np.concatenate([x[:1], p["registers"][0]]), x[1:]
        small = np.einsum("rh,cw,hwd->rcd", fewer(h, side), fewer(w, side), x.reshape(h, w, -1))
        z = np.concatenate([first, small.reshape(side * side, -1)])
        for i in range(model.depth):
            b = p["encoder"][f"block_{i}"]
            read, write = b["lookup_read"], b.get("lookup_write")
            (q,) = parts(linear(read["q"], norm(b["norm_lookup_read"], z)), 1)
            k, v = parts(linear(read["kv"], norm(b["norm_lookup"], x)), 2)
            weights = attend(q, k)
            z = z + linear(read["out"], joined(weights, v))
            q, k, v = parts(linear(b["attention"]["qkv"], norm(b["norm_attention"], z)), 3)
            z = z + linear(b["attention"]["out"], joined(attend(q, k), v))
            z = z + mlp(b["mlp"], norm(b["norm_mlp"], z))
            if i + 1 < model.depth:
                (v,) = parts(linear(write["v"], norm(b["norm_lookup_write"], z)), 1)
                x = x + linear(write["out"], joined([w.T for w in weights], v))
                x = x + mlp(b["lookup_mlp"], norm(b["norm_lookup_mlp"], x))
        return linear(p["head"], norm(p["encoder"]["norm"], z)[0])

    return np.stack([one(np.asarray(i, np.float64)) for i in image])


def made(rng):
    model = models.create("vit", **FIELDS, registers=1, reduce="lookup(2, narrow=4)")
    image = rng.standard_normal(IMAGE).astype("float32")
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image))["params"]
    return (
        model,
        image,
        jax.tree.map(lambda s: (rng.standard_normal(s.shape) / s.shape[-1] ** 0.5).astype("f4"), shapes),
    )


def test_a_vit_is_the_equations(rng):
    model, image, params = made(rng)
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, image), vit(model, params, image), atol=1e-5)
    blocks = params["encoder"]
    assert blocks["block_0"]["lookup_mlp"]["mlp_in"]["kernel"].shape == (8, 2)
    assert "lookup_read" in blocks["block_1"] and "lookup_write" not in blocks["block_1"]  # for nobody


@pytest.mark.thorough
def test_so_is_its_gradient_which_reaches_every_parameter(rng):
    model, image, params = made(rng)
    g = rng.standard_normal((2, 3)).astype("float32")
    grads = jax.jit(jax.grad(lambda p: jnp.sum(model.apply({"params": p}, image) * g)))(params)
    assert all(np.isfinite(x).all() and np.abs(x).max() > 0 for x in jax.tree.leaves(grads))
    wide, way = (jax.tree.map(f, params) for f in (np.float64, lambda x: rng.standard_normal(x.shape)))
    ends = [vit(model, jax.tree.map(lambda x, d, s=s: x + s * d, wide, way), image) for s in (1e-5, -1e-5)]
    along = sum(np.sum(np.asarray(x, np.float64) * d) for x, d in zip(*map(jax.tree.leaves, (grads, way)), strict=True))
    np.testing.assert_allclose(along, np.sum((ends[0] - ends[1]) * g) / 2e-5, rtol=1e-4)


def test_what_one_token_read_is_written_back_to_it(rng):
    """With weights of one: compressed token m reads lookup token at[m], and is written there and nowhere else."""
    at = np.array([[4, 1, 3], [0, 2, 4]])
    weights = jnp.asarray(np.eye(5)[at][:, None].repeat(2, axis=1), jnp.float32)
    z, eye = jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32), jnp.eye(4)
    maps = {name: {"kernel": eye, "bias": jnp.zeros(4)} for name in ("v", "out")}
    want = np.zeros((2, 5, 4), "float32")
    for b, m in np.ndindex(2, 3):
        want[b, at[b, m]] = z[b, m]
    np.testing.assert_array_equal(Write(2).apply({"params": maps}, weights, z), want)


def test_as_a_user_writes_it():
    model = models.create("vit", **FIELDS, pool="gap", reduce="lookup(2, levels=(1, 3))")
    assert list(model.forms()) == ["grid_2", "grid_1", "grid_3"]
    assert models.create(**describe(model)) == model
    assert config.parse(ReducerSpec, "lookup(7, 4)") == Lookup(7, 4)


@pytest.mark.thorough
def test_grids_are_forms_of_one_set_of_parameters():
    model = models.create("vit", **FIELDS, pool="gap", reduce="lookup(2, levels=(1, 3))")
    image = jnp.zeros(IMAGE)
    shapes = [nn.unbox(jax.eval_shape(m.init, jax.random.key(0), image)) for m in (model, *model.forms().values())]
    assert all(jax.tree.map(jnp.shape, s) == jax.tree.map(jnp.shape, shapes[0]) for s in shapes)
    run = lambda m: jax.eval_shape(lambda v: m.apply(v, image, method="features"), shapes[0]).tokens.shape  # noqa: E731
    assert [run(m) for m in (model, *model.forms().values())] == [(2, n, 8) for n in (4, 4, 1, 9)]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"reduce": "lookup(4)"}, r"lookup\(4\) compresses to 4x4 tokens, and there are 3x5; give at most 3"),
        ({"reduce": "lookup(2, levels=(3, 5))"}, r"lookup\(5\) compresses to 5x5"),
        ({"reduce": "lookup(2)", "scan": True}, "set scan=False"),
        ({"reduce": "lookup(2)", "rotary": "rope"}, "set reduce=None"),
        ({"reduce": "lookup(2)", "prompts": ((1, 2),)}, "set reduce=None"),
    ],
)
def test_models_that_cannot(fields, says):
    model = models.create("vit", **FIELDS, **fields)
    with pytest.raises(UserError, match=says):
        jax.eval_shape(model.apply, jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(IMAGE)), jnp.zeros(IMAGE))


def test_wrong_values():
    for spec, says in (("lookup(0)", "grid=0"), ("lookup(5, 0)", "narrow=0"), ("lookup(5, levels=(0,))", "levels")):
        with pytest.raises(UsageError, match=says):
            models.create("vit", reduce=spec)


@pytest.mark.slow
@pytest.mark.parametrize("grid", [3, 5, 7, 10])
def test_flops_are_those_of_the_products(grid):
    """Of ViT-S/16, 196 tokens beside M; those of norms and nonlinearities are the few percent on top."""
    model = models.create("vit_s16", reduce=Lookup(grid))
    n, m, d, f, depth = 196, 1 + grid**2, 384, 1536, 12
    block = 2 * m * (4 * d * d + 2 * d * f) + 4 * m * m * d  # on Z
    read = 2 * (2 * m + 2 * n) * d * d + 4 * m * n * d
    write = 2 * (m + n) * d * d + 2 * m * n * d + 2 * n * 2 * d * (d // 2)
    want = depth * (block + read) + (depth - 1) * write + 2 * n * 768 * d
    assert want < cost.flops(model, model.inputs(224)) < 1.05 * want
