"""MambaMixer against loops in float64, its weighted sums, and its options."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.layers.test_selective import crossed, mixed, random_params
from tests.models.test_vim import norm
from vit_jax import models, trees
from vit_jax.optim import masks
from vit_jax.types import UserError

TINY = dict(num_classes=3, patch=2, width=20, depth=2, state=3)
GRID = (3, 2)


def token(x, q):
    return crossed(norm(x, q["norm_token"]), q["token_mixer"], GRID)


def channel(x, q):
    return mixed(norm(x, q["norm_channel"]).T, q["channel_mixer"]).T


def patches(image, p):
    """Of one image, ``[H, W, C]``."""
    h, w, c = image.shape
    x = image.reshape(h // 2, 2, w // 2, 2, c).transpose(0, 2, 1, 3, 4).reshape(-1, 4 * c)
    return x @ p["patch"]["kernel"].reshape(4 * c, -1) + p["patch"]["bias"]


def averaged(p, image):
    """Blocks as the paper has them: every mixer takes a weighted sum of all outputs."""
    outputs, weigh = [patches(image, p)], lambda w: sum(a * y for a, y in zip(w, outputs, strict=True))
    x = outputs[0]
    for q in p["encoder"].values():
        outputs.append(token(x, q))
        outputs.append(channel(weigh(q["weights_channel"]), q))
        x = weigh(q["weights_token"])
    return x


def residual(p, image):
    x = patches(image, p)
    for q in p["encoder"].values():
        x = x + token(x, q)
        x = x + channel(x, q)
    return x


def chained(p, image):
    x = patches(image, p)
    for q in p["encoder"].values():
        x = channel(token(x, q), q)
    return x


WAYS = {
    "averaged": (averaged, lambda w, rng: rng.uniform(-1, 1, w.shape)),
    "residual": (residual, lambda w, _: np.ones(w.shape)),
    "chained": (chained, lambda w, _: np.eye(w.shape[0])[-1]),
}


@functools.cache
def program():
    model = models.create("mamba_mixer", **TINY)
    return model, random_params(model, jnp.zeros((1, 6, 4, 2))), jax.jit(model.apply)


@pytest.mark.parametrize("way", WAYS)
def test_equals_loops_in_float64(rng, way):
    """Of any weights; ones are a plain residual network, one for the newest output alone is a plain stack."""
    _, params, apply = program()
    reference, draw = WAYS[way]

    def chosen(path, x):
        return jnp.asarray(draw(x, rng), jnp.float32) if "weights_" in str(path[-1]) else x

    params = jax.tree_util.tree_map_with_path(chosen, params)
    image = rng.standard_normal((2, 6, 4, 2))
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    tokens = [norm(reference(wide, one), wide["norm"]) for one in image]
    want = np.stack([x.mean(0) @ wide["head"]["kernel"] + wide["head"]["bias"] for x in tokens])
    got = apply({"params": params}, jnp.asarray(image, jnp.float32))
    np.testing.assert_allclose(got, want, atol=2e-5 * abs(want).max())


def test_it_begins_as_a_residual_network_and_weights_are_not_decayed():
    model, params, _ = program()
    image = jnp.zeros((1, 6, 4, 2))

    def weights(key):
        found = trees.flat(nn.unbox(model.init(key, image)["params"]["encoder"]))
        return {path: x for path, x in found.items() if "weights" in path}

    began = {path: x.tolist() for path, x in jax.jit(weights)(jax.random.key(0)).items()}
    assert began == {
        f"block_{i}/weights_{name}": [1.0] * n
        for i in (0, 1)
        for name, n in (("channel", 2 + 2 * i), ("token", 3 + 2 * i))
    }
    roles = model.roles(params)
    decay = dict(zip(jax.tree.leaves(masks.paths(params)), jax.tree.leaves(masks.kernels_only(roles)), strict=True))
    assert {path.rpartition("/")[2] for path, yes in decay.items() if yes} == {"kernel", "kernel_conv"}
    above = jax.tree.map(lambda role: role.above, roles)
    assert above["patch"]["kernel"] == 3 and above["encoder"]["block_0"]["weights_channel"] == 2
    assert above["norm"]["scale"] == above["head"]["kernel"] == 0
    assert None not in {role.kind for role in jax.tree.leaves(roles)}


@pytest.mark.thorough
def test_every_output_of_a_block_reaches_every_later_one(rng):
    """Gradients of all parameters, the weights of the first outputs in the last block too; the same with remat."""
    model, params, _ = program()
    image, rngs = jnp.asarray(rng.standard_normal((8, 6, 4, 2)), jnp.float32), {"dropout": jax.random.key(3)}
    model = model.clone(drop_path=0.4, dropout=0.1, layer_scale=0.5)
    params = random_params(model, image)

    def gradient(m):
        f = functools.partial(m.apply, train=True, rngs=rngs)
        return jax.jit(jax.grad(lambda p: jnp.sum(f({"params": p}, image) ** 2)))(params)

    plain = gradient(model)
    flat = dict(zip(jax.tree.leaves(masks.paths(params)), jax.tree.leaves(plain), strict=True))
    assert not [path for path, g in flat.items() if not np.all(np.isfinite(g)) or not np.any(g)]
    assert np.all(flat["encoder/block_1/weights_token"] != 0)
    rounded = jax.eval_shape(functools.partial(gradient, model.clone(saved="int8")))
    assert jax.tree.map(jnp.shape, rounded) == jax.tree.map(jnp.shape, plain)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(gradient(model.clone(remat="full"))), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * max(1e-3, float(jnp.max(jnp.abs(a)))))


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"scan": True}, "those of this model differ; set scan=False"), ({"ffn": "gated"}, "a MambaMixer has no MLPs")],
)
def test_what_it_cannot_is_a_sentence(fields, says):
    model = models.create("mamba_mixer", **TINY, **fields)
    with pytest.raises(UserError, match=says):
        params = jax.eval_shape(model.init, jax.random.key(0), *model.inputs(4))
        jax.eval_shape(model.apply, params, *model.inputs(4))


def test_between_blocks_tokens_stay_float32_and_no_kernel_is_portable():
    model = models.create("mamba_mixer", **TINY, dtype="bfloat16", selective_scan="mosaic_tpu")
    plain = models.portable(model)
    assert plain == model.clone(selective_scan="xla")
    params, image = program()[1], jnp.zeros((1, 6, 4, 2))
    run = functools.partial(plain.apply, method="features", mutable=["features"])
    found, variables = jax.eval_shape(lambda p: run({"params": p}, image), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["features"])} == {jnp.dtype("float32")}
    assert (found.tokens.shape, found.tokens.dtype, found.pooled.dtype) == ((1, 6, 20), "bfloat16", "float32")
