"""Vim against NumPy in float64, its symmetry, and its options."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.layers.test_selective import mixed, random_params
from vit_jax import models
from vit_jax.optim import masks
from vit_jax.types import UserError

TINY = dict(num_classes=3, patch=4, width=20, depth=2, state=3)


def norm(x, p):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"]


def reference(p, image):
    """Logits of one image, ``[H, W, C]``."""
    h, w, c = image.shape
    x = image.reshape(h // 4, 4, w // 4, 4, c).transpose(0, 2, 1, 3, 4).reshape(-1, 16 * c)
    x = x @ p["patch"]["kernel"].reshape(16 * c, -1) + p["patch"]["bias"]
    positions, middle = p["position"]["embedding"][0], len(x) // 2
    x = np.insert(x + positions[1:], middle, p["cls"][0, 0] + positions[0], axis=0)
    for q in p["encoder"].values():
        x = x + mixed(norm(x, q["norm_mixer"]), q["mixer"])
    return norm(x, p["norm"])[middle] @ p["head"]["kernel"] + p["head"]["bias"]


def test_equals_the_paper_in_float64(rng, run):
    image = rng.standard_normal((2, 12, 8, 2))
    model = models.create("vim", **{**TINY, "depth": 1})
    params = random_params(model, image)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    want = np.stack([reference(wide, one) for one in image])
    np.testing.assert_allclose(run(model, params, jnp.asarray(image, jnp.float32)), want, atol=2e-5 * abs(want).max())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vim_ti16", 7_148_008),
        *(pytest.param(*row, marks=pytest.mark.slow) for row in (("vim_s16", 25_796_584), ("vim_b16", 97_598_440))),
    ],
)
def test_sizes_of_the_published_models(name, count):
    """From those of one and of two blocks, as all are equal."""
    one, two = (models.create(name, depth=depth) for depth in (1, 2))
    shapes = [
        jax.eval_shape(lambda *x, m=m: m.init(jax.random.key(0), *x)["params"], *m.inputs(224)) for m in (one, two)
    ]
    first, second = (sum(x.size for x in jax.tree.leaves(nn.meta.unbox(tree))) for tree in shapes)
    assert first + (models.create(name).depth - 1) * (second - first) == count


def test_rates_skips_biases_and_norms_are_not_decayed():
    model = models.create("vim", **TINY)
    shapes = nn.unbox(jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x)["params"], *model.inputs(8)))
    roles = model.roles(shapes)
    decay = dict(zip(jax.tree.leaves(masks.paths(shapes)), jax.tree.leaves(masks.kernels_only(roles)), strict=True))
    kept = {path.rpartition("/")[2] for path, value in decay.items() if value}
    assert kept == {"kernel", "kernel_conv"} and "encoder/block_1/mixer/forward/A_log" in decay
    layers = jax.tree.map(lambda role: role.above, roles)
    assert layers["encoder"]["block_0"]["mixer"]["backward"]["D"] == 2 and layers["position"]["embedding"] == 3
    assert layers["norm"]["scale"] == layers["head"]["kernel"] == 0


def test_as_a_tower():
    text = {"width": 8, "depth": 1, "heads": 1, "mlp_dim": 8, "vocab_size": 9, "length": 4}
    tower = {"name": "vim", **TINY, "num_classes": 0}
    model = models.create("two_tower", image_tower=tower, text_tower=text, embed_dim=6)
    params = nn.unbox(jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x)["params"], *model.inputs(8)))
    roles = model.roles(params)["image_tower"]["encoder"]["block_0"]["mixer"]["forward"]
    assert (roles["D"].kind, roles["D"].above, roles["kernel_conv"].kind) == ("filter", 2, "kernel")
    embed = lambda p, x: model.apply({"params": p}, x, method="embed_image")  # noqa: E731
    assert jax.eval_shape(embed, params, jnp.zeros((3, 8, 8, 3))).shape == (3, 6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"scan": True}, {"remat": "full"}])
def test_how_it_is_run_does_not_change_what_it_is(rng, options):
    image = jnp.asarray(rng.standard_normal((2, 12, 12, 3)), jnp.float32)
    model = models.create("vim", **TINY, drop_path=0.4)
    params, rngs = random_params(model, image), {"dropout": jax.random.key(3)}

    def loss(m):
        f = functools.partial(m.apply, train=True, rngs=rngs)
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(f({"params": p}, image) ** 2)))(params)

    for a, b in zip(jax.tree.leaves(loss(model)), jax.tree.leaves(loss(model.clone(**options))), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * max(1e-3, float(jnp.max(jnp.abs(a)))))


def test_between_blocks_tokens_stay_float32(rng):
    image = jnp.asarray(rng.standard_normal((1, 8, 8, 3)), jnp.float32)
    model = models.create("vim", **TINY, dtype="bfloat16")
    params = random_params(model, image)
    shapes = jax.eval_shape(lambda p: model.apply({"params": p}, image, mutable=["features"]), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes[1]["features"])} == {jnp.dtype("float32")}
    found = jax.eval_shape(lambda p: model.apply({"params": p}, image, method="features"), params)
    assert (found.tokens.shape, found.tokens.dtype, found.pooled.dtype) == ((1, 5, 20), "bfloat16", "float32")


def test_its_portable_form_has_no_kernel():
    model = models.create("vim", **TINY, scan=True, selective_scan="mosaic_tpu")
    assert models.portable(model) == models.create("vim", **TINY, selective_scan="xla")


def test_there_is_no_mlp_to_replace():
    model = models.create("vim", **TINY, ffn="gated")
    with pytest.raises(UserError, match="a Vim has no MLPs"):
        jax.eval_shape(model.init, jax.random.key(0), *model.inputs(8))
