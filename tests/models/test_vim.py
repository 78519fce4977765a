"""Vim against NumPy in float64, its symmetry, and its options."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.models.vim import SelectiveMixer
from vit_jax.optim import masks
from vit_jax.types import UserError

TINY = dict(num_classes=3, patch=4, width=20, depth=2, state=3)


def random_params(model, *inputs):
    """Normal numbers; what the step sizes are made of small, so that states last."""
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"])
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.3, jnp.float32), shapes)


def silu(x):
    return x / (1 + np.exp(-x))


def norm(x, p):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"]


def direction(x, p, short=True):
    """Algorithm 1 of the paper for one direction of one image, ``[N, E]``; ``short`` for its convolution."""
    if short:
        moved = [np.concatenate([np.zeros((3 - i, x.shape[1])), x])[: len(x)] for i in range(4)]
        x = silu(sum(m * w for m, w in zip(moved, p["kernel_conv"], strict=True)) + p["bias_conv"])
    rank, state = len(p["dt_proj"]["kernel"]), p["A_log"].shape[1]
    r, b, c = np.split(x @ p["x_proj"]["kernel"], (rank, rank + state), axis=1)
    delta = np.log1p(np.exp(r @ p["dt_proj"]["kernel"] + p["bias_dt"]))
    h, rows = np.zeros(p["A_log"].shape), []
    for t in range(len(x)):
        h = np.exp(-delta[t, :, None] * np.exp(p["A_log"])) * h + (delta[t] * x[t])[:, None] * b[t]
        rows.append(h @ c[t] + p["D"] * x[t])
    return np.stack(rows)


def mixed(x, p):
    value, gate = np.split(x @ p["in"]["kernel"], 2, axis=1)
    y = direction(value, p["forward"]) + direction(value[::-1], p["backward"])[::-1]
    return y / 2 * silu(gate) @ p["out"]["kernel"]


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


def test_in_reverse_with_both_directions_exchanged_it_is_reversed(rng):
    mixer, x = SelectiveMixer(state=3), jnp.asarray(rng.standard_normal((2, 7, 5)), jnp.float32)
    params = random_params(mixer, x)
    other = {**params, "forward": params["backward"], "backward": params["forward"]}
    apply = jax.jit(mixer.apply)
    got, want = apply({"params": other}, x[:, ::-1]), apply({"params": params}, x)[:, ::-1]
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    assert np.abs(apply({"params": params}, x[:, ::-1]) - want).max() > 1e-2 * np.abs(want).max()


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


def test_beginnings():
    """Rates of 1 to n, steps between a thousandth and a tenth, and output maps that shrink with the depth."""
    mixer = SelectiveMixer(depth=16)
    made = nn.unbox(jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 1, 64)))["params"])
    one, other = (jax.tree.map(np.asarray, made[name]) for name in ("forward", "backward"))
    np.testing.assert_allclose(np.exp(one["A_log"]), np.tile(np.arange(1, 17), (128, 1)), rtol=1e-6)
    steps = np.log1p(np.exp(one["bias_dt"]))
    assert 9e-4 < steps.min() < 4e-3 and 0.03 < steps.max() < 0.11
    assert (one["D"] == 1).all() and not np.array_equal(one["bias_dt"], other["bias_dt"])
    bounds = {"kernel_conv": 4, "bias_conv": 4, "dt_proj": 4, "x_proj": 128}
    found = {key: np.abs(jax.tree.leaves(one[key])[0]).max() * inputs**0.5 for key, inputs in bounds.items()}
    found["out"] = np.abs(made["out"]["kernel"]).max() * 128**0.5 * 16**0.5
    assert all(0.9 < value <= 1.0001 for value in found.values()), found


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
