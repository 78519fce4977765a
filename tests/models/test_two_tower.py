"""CLIP and its relatives: counts, closed forms, locked towers, configuration, mistakes, sharding."""

from __future__ import annotations

import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models, sharding
from vit_jax.types import UsageError, UserError

COUNTS = {
    "clip_vit_b32": 151_277_313,
    "clip_vit_b16": 149_620_737,
    "clip_vit_l14": 427_616_513,
    "clip_vit_h14": 986_109_441,
    "clip_vit_g14": 1_366_678_273,
    "clip_vit_G14": 2_539_567_105,
    "coca_vit_b32": 253_560_065,
    "coca_vit_l14": 638_450_177,
    "siglip_vit_b16": 203_155_970,
    "siglip2_vit_b16_naflex": 375_234_050,
    "siglip2_vit_so400m16_naflex": 1_135_670_962,
}
"""At 224 px, of open_clip's models with these names; SigLIP 2's of transformers'."""
STACKS = ("image_tower", "text_tower", "decoder")
IMAGE = {"name": "vit", "patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 24}
TEXT = {"vocab_size": 17, "length": 6, "end_id": 16, "width": 12, "depth": 1, "heads": 2, "mlp_dim": 20}


def tiny(**fields):
    return models.create(**{"name": "two_tower", "image_tower": IMAGE, "text_tower": TEXT, "embed_dim": 10, **fields})


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    text = jnp.asarray(rng.integers(0, 16, (8, 6)), jnp.int32).at[:, 4].set(16)
    return jnp.asarray(rng.standard_normal((8, 8, 8, 3)), jnp.float32), text


def init(model, pairs, seed=0):
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *pairs)["params"])
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.3, jnp.float32), shapes)


def count(model):
    shapes = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x)["params"], *model.inputs(224))
    return sum(x.size for x in jax.tree.leaves(nn.unbox(shapes)))


@pytest.mark.first(2)
@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_open_clips(name):
    """All blocks of a stack are alike: one and two of them tell what the model's own number has."""
    model = models.create(name)
    stacks = {k: v.depth for k, v in ((k, getattr(model, k, None)) for k in STACKS) if v is not None}
    flat = {k: getattr(model, k).clone(depth=1) for k in stacks}
    one = count(model.clone(**flat))
    more = {k: count(model.clone(**flat | {k: flat[k].clone(depth=2)})) - one for k in stacks}
    assert one + sum(more[k] * (depth - 1) for k, depth in stacks.items()) == COUNTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_parameters_of_whole_models_are_counted_alike(name):
    assert count(models.create(name)) == COUNTS[name]


def test_embeddings_are_heads_of_the_towers_of_unit_length(pairs, run):
    image, text = pairs
    model = tiny(bias=-3.0, text_head="biased")
    params = init(model, pairs)
    found = run(model, params, image, text)
    pooled = run(models.create(**IMAGE, num_classes=0), params["image_tower"], image)
    expected = np.asarray(pooled, np.float64) @ np.asarray(params["image_head"]["kernel"], np.float64)
    np.testing.assert_allclose(found.image, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    pooled = run(model.text_tower, params["text_tower"], text).pooled
    expected = np.asarray(pooled, np.float64) @ np.asarray(params["text_head"]["kernel"]) + np.asarray(
        params["text_head"]["bias"]
    )
    np.testing.assert_allclose(found.text, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(found.scale, np.exp(params["logit_scale"]), rtol=1e-6)
    assert found.bias == params["logit_bias"] and found.hidden is None
    np.testing.assert_array_equal(run(model, params, image, method="embed_image"), found.image)
    np.testing.assert_array_equal(run(model, params, text, method="embed_text"), found.text)


@pytest.mark.thorough
def test_initial_temperature_and_bias(pairs, run):
    model = tiny(temperature=10.0, bias=-10.0)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), *pairs)["params"])
    assert params["logit_scale"] == np.float32(math.log(10)) and params["logit_bias"] == -10
    assert params["logit_scale"].shape == params["logit_bias"].shape == ()
    plain = nn.unbox(jax.jit(tiny().init)(jax.random.key(0), *pairs)["params"])
    assert "logit_bias" not in plain and run(tiny(), plain, *pairs).bias == 0
    np.testing.assert_allclose(plain["logit_scale"], 2.6593, atol=1e-4)  # Radford et al. 2021, section 2.5


@pytest.mark.first(1)
@pytest.mark.parametrize("side", ["image", "text"])
def test_a_locked_tower_gets_no_gradient_and_no_dropout(side, pairs):
    towers = {"image_tower": {**IMAGE, "dropout": 0.5}, "text_tower": {**TEXT, "dropout": 0.5}}
    model = tiny(lock=side, **towers)
    params = init(model, pairs)

    def loss(p, key):
        found = model.apply({"params": p}, *pairs, train=True, rngs={"dropout": key})
        return jnp.sum(found.image * found.text * found.scale), found

    step = jax.jit(jax.grad(loss, has_aux=True))
    (grads, one), (_, two) = (step(params, jax.random.key(seed)) for seed in (0, 1))
    other = "text" if side == "image" else "image"
    assert not any(np.any(g) for g in jax.tree.leaves(grads[f"{side}_tower"]))
    assert all(np.any(g) for g in jax.tree.leaves(grads[f"{other}_head"])) and np.any(grads[f"{side}_head"]["kernel"])
    np.testing.assert_array_equal(getattr(one, side), getattr(two, side))
    assert np.abs(getattr(one, other) - getattr(two, other)).max() > 1e-2


TOWERS = {
    "mixer": {"name": "mixer", "patch": 4, "width": 16, "depth": 1, "token_dim": 6, "mlp_dim": 24},
    "hybrid": {**IMAGE, "patch": 1, "stem": (1,)},
    "map": {**IMAGE, "pool": "map", "patch_bias": False, "pre_norm": True},
}


@pytest.mark.first(1)
@pytest.mark.parametrize("tower", TOWERS.values(), ids=TOWERS)
def test_any_image_tower(tower, pairs, run):
    image = jnp.zeros((2, 32, 32, 3)) if "stem" in tower else pairs[0][:2]
    model = tiny(image_tower=tower)
    found = run(model, init(model, (image, pairs[1][:2])), image, pairs[1][:2])
    assert found.image.shape == (2, 10)


def test_a_row_is_changed_field_by_field():
    model = models.create("clip_vit_b32", image_tower={"dtype": "bfloat16"}, text_tower={"depth": 3})
    assert (model.image_tower.patch, model.image_tower.dtype, model.dtype) == (32, "bfloat16", "bfloat16")
    assert (model.text_tower.depth, model.text_tower.width) == (3, 512)
    other = models.create("clip_vit_b32", image_tower="mixer_b16", text_tower={"width": 256, "heads": 4})
    assert isinstance(other.image_tower, models.Mixer) and other.text_tower.width == 256
    bf16 = models.replace_in_towers(models.create("coca_vit_b32"), dtype="bfloat16", scan=True)
    parts = (bf16.image_tower, bf16.text_tower, bf16.decoder)
    assert all(p.dtype == "bfloat16" and p.scan for p in parts)
    assert models.create("ViT-B-32") == models.create("clip_vit_b32") and hash(model) == hash(model.clone())


def test_mistakes(pairs):
    cases = [
        (
            {"image_head": "none"},
            UserError,
            r"image tower gives 16 features and embed_dim is 10; set image_head='linear'",
        ),
        ({"temperature": 0.0}, UserError, r"temperature=0.0 is not allowed"),
        ({"temperature": float("nan")}, UserError, r"temperature=nan is not allowed"),
    ]
    for fields, kind, message in cases:
        with pytest.raises(kind, match=message):
            init(tiny(**fields), pairs)
    with pytest.raises(UsageError, match=r"unknown key 'model.text_tower.dept'; did you mean 'depth'"):
        tiny(text_tower={"dept": 3})
    with pytest.raises(UsageError, match="image_head='linea' is not allowed; did you mean 'linear'"):
        tiny(image_head="linea")


def test_the_same_over_a_mesh(pairs, run):
    model = tiny()
    params = init(model, pairs)
    expected = run(model, params, *pairs)
    mesh = sharding.make_mesh(sharding.MeshConfig(replica=2, fsdp=2, tensor=2))
    boxed = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x)["params"], *pairs)
    layout = sharding.param_shardings(boxed, mesh)
    with jax.set_mesh(mesh):
        data = sharding.data_sharding(mesh)
        apply = jax.jit(lambda p, *x: model.apply({"params": p}, *x), in_shardings=(layout, data, data))
        found = apply(jax.device_put(params, layout), *(jax.device_put(x, data) for x in pairs))
    chex.assert_trees_all_close(jax.device_get(found), jax.device_get(expected), atol=1e-5)
