"""The table of models: published parameter counts, pinned paths, names and their aliases, configuration."""

from __future__ import annotations

import math
import pathlib
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from vit_jax import config, models
from vit_jax.types import UsageError

GOLDEN = pathlib.Path(__file__).parent / "golden"
COUNTS = {
    "vit_ti16": 5_717_416,
    "vit_s16": 22_050_664,
    "vit_b16": 86_567_656,
    "vit_b32": 88_224_232,
    "vit_l16": 304_326_632,
    "vit_h14": 632_045_800,
    "vit_g14": 1_012_611_432,
    "vit_G14": 1_844_440_680,
    "mixer_s16": 18_528_264,
    "mixer_b16": 59_880_472,
    "mixer_b32": 60_293_428,
    "mixer_l16": 208_196_168,
    "vit_r26_s32": 36_431_912,
    "vit_r50_l32": 328_994_856,
}
"""With 1,000 classes, as published (AugReg and Mixer papers; timm's model cards)."""


FEATURES = {
    "dinov2_vits14": (518, 22_056_192),
    "dinov2_vitg14": (518, 1_136_479_232),
    "dinov3_vits16": (256, 21_586_944),
    "dinov3_vits16plus": (256, 28_683_264),
    "dinov3_vitb16": (256, 85_641_216),
    "dinov3_vitl16": (256, 303_079_424),
    "dinov3_vith16plus": (256, 840_509_440),
    "eva02_ti14": (224, 5_502_144),
    "eva02_b14": (224, 85_758_720),
    "eva02_l14": (224, 303_268_800),
    "naflexvit_b16": (256, 92_930_304),
    "naflexvit_so400m16": (256, 427_888_064),
}
"""Side of the images, and parameters without a head (timm 1.0.31)."""
DISTILLED = {"deit_ti16_distilled": 5_910_800, "deit_s16_distilled": 22_436_432, "deit_b16_distilled": 87_338_192}
FAST = ("dinov3_vith16plus", "eva02_l14")


def shapes(name, size=224, **overrides):
    model = models.create(name, **overrides)
    return jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x)["params"], *model.inputs(size))


def count(name, size=224, **overrides):
    return sum(x.size for x in jax.tree.leaves(nn.meta.unbox(shapes(name, size, **overrides))))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in FEATURES])
def test_parameter_counts_of_models_without_a_head(name):
    size, want = FEATURES[name]
    one, two = (count(name, size, depth=depth, num_classes=0) for depth in (1, 2))
    assert one + (models.create(name).depth - 1) * (two - one) == want


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTILLED)
def test_parameter_counts_of_distilled_models(name):
    assert count(name) == DISTILLED[name]


@pytest.mark.first(5)
@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name):
    """All blocks of a stack are alike: one and two of them tell what the model's own number has."""
    one, two = (count(name, depth=depth) for depth in (1, 2))
    assert one + (models.create(name).depth - 1) * (two - one) == COUNTS[name]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "vit_ti16")) for n in COUNTS])
def test_parameters_of_whole_models_are_counted_alike(name):
    assert count(name) == COUNTS[name]


IMAGE = {"depth": 1}
PAIR = {"image_tower": IMAGE, "text_tower": IMAGE}
PINNED = {
    "vit_b16": IMAGE, "mixer_b16": IMAGE, "vit_r26_s32": IMAGE, "clip_vit_b32": PAIR, "siglip_vit_b16": PAIR,
    "coca_vit_b32": {**PAIR, "decoder": IMAGE},
}  # fmt: skip


@pytest.mark.parametrize("name", PINNED)
def test_paths_shapes_and_axes_are_pinned(name):
    flat = jax.tree_util.tree_flatten_with_path(
        shapes(name, **PINNED[name]), is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )[0]
    lines = []
    for path, leaf in flat:
        assert isinstance(leaf, nn.LogicallyPartitioned), f"{path} has no logical axes"
        shape = "x".join(map(str, leaf.value.shape))
        axes = ",".join(a or "-" for a in leaf.names)
        assert len(leaf.names) == leaf.value.ndim and leaf.value.dtype == jnp.float32
        lines.append(f"{'/'.join(k.key for k in path)} {shape} {axes}")
    assert lines == (GOLDEN / f"{name}.txt").read_text().splitlines()


LINEAR = {"qkv_linear": "monarch(2)", "out_linear": "low_rank(4)", "mlp_linear": "block_diagonal(4)"}
WITH_LINEAR = {
    "vit_ti16": LINEAR,
    "mixer_s16": {"token_linear": "monarch(2)", "mlp_linear": "monarch(2)"},
    "m2_vit_ti16": {"qkv_linear": "monarch(2)", "mlp_linear": "monarch(4)"},
    "coca_vit_b32": {"image_tower": LINEAR, "text_tower": LINEAR, "decoder": LINEAR},
}


@pytest.mark.parametrize("name", WITH_LINEAR)
def test_linear_maps_are_a_field_of_every_model(name):
    def leaves(tree):
        flat = jax.tree_util.tree_flatten_with_path(nn.meta.unbox(tree))[0]
        return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in flat}

    def maps(fields, prefix=""):
        for key, value in fields.items():
            yield from maps(value, f"{prefix}{key}/") if isinstance(value, dict) else [(prefix, value)]

    one = {"depth": 1}
    size = {"image_tower": one, "text_tower": one, "decoder": one} if name.startswith("coca") else one
    fields = {k: {**one, **v} if isinstance(v, dict) else v for k, v in WITH_LINEAR[name].items()}
    plain, made = leaves(shapes(name, **size)), leaves(shapes(name, **{**size, **fields}))
    assert len(made) > len(plain) and sum(map(math.prod, made.values())) < sum(map(math.prod, plain.values()))
    for prefix in {prefix for prefix, _ in maps(WITH_LINEAR[name])}:
        assert any(path.startswith(prefix) and path.endswith("kernel_1") for path in made), prefix


def test_scan_remat_and_dtype_do_not_change_the_layout():
    for name in ("vit_ti16", "mixer_s16"):
        assert shapes(name) == shapes(name, scan=True, remat="full", dtype="bfloat16")


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("ViT-B_16", "vit_b16"),
        ("B/16", "vit_b16"),
        ("ViT-Ti/16", "vit_ti16"),
        ("G/14", "vit_G14"),
        ("g/14", "vit_g14"),
        ("R50+ViT-L_32", "vit_r50_l32"),
        ("R26_S_32", "vit_r26_s32"),
        ("R+ViT-Ti_16", "vit_r_ti16"),
        ("Mixer-B_16", "mixer_b16"),
        ("vit_base_patch16_224", "vit_b16"),
        ("vit_gigantic_patch14_224", "vit_G14"),
        ("vit_base_patch16_384", "vit_b16"),
        ("vit_large_patch14_518", "vit_l14"),
        ("vit_small_r26_s32_224", "vit_r26_s32"),
        ("vit_large_r50_s32_384", "vit_r50_l32"),
        ("So400m/14", "vit_so400m14"),
        ("mixer_b16_224", "mixer_b16"),
    ],
)
def test_other_repositories_names(alias, name):
    assert models.ALIASES[alias] == name
    assert models.create(alias, num_classes=3) == models.create(name, num_classes=3)
    assert alias not in models.MODELS


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vit_tiny_patch16_384", {}),
        ("vit_base_patch8_224", {}),
        ("vit_tiny_r_s16_p8_384", {}),
        ("vit_base_r50_s16_384", {}),
        ("mixer_s32_224", {}),
        ("vit_so400m_patch14_siglip_224", {"name": "vit_so400m14", "pool": "map", "num_classes": 0}),
    ],
)
def test_the_variants_are_timms(timm, name, fields):
    """As many parameters at the same image size; the tensors themselves are compared where they are converted."""
    side = int(name.rsplit("_", 1)[1])
    model = models.create(**{"name": name, **fields})
    ours = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    theirs = timm.create_model(name, device="meta").parameters()
    assert sum(x.size for x in jax.tree.leaves(ours)) == sum(p.numel() for p in theirs)


def test_every_alias_has_a_model():
    assert set(models.ALIASES.values()) <= set(models.MODELS)
    assert set(models.NAMES) == set(models.MODELS) | set(models.ALIASES)


CHOICE = Annotated[nn.Module, config.Choice(models.NAMES)]


@pytest.mark.parametrize(
    "value",
    ["vit_ti16(dtype='bfloat16')", {"name": "vit_ti16", "dtype": "bfloat16"}, {"name": "Ti/16", "dtype": "bfloat16"}],
)
def test_models_are_configuration_values(value):
    model = config.parse(CHOICE, value)
    assert model == models.create("vit_ti16", dtype="bfloat16") and hash(model) == hash(model.clone())
    assert (model.width, model.heads, model.dtype) == (192, 3, "bfloat16")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.create("vit_b61"), "unknown model 'vit_b61'; did you mean 'vit_b16'"),
        (lambda: models.create("vit_b16", pach=8), "unknown key 'model.pach'; did you mean 'patch'"),
        (lambda: models.create("vit_b16", dtype="float16"), "'float16' is not allowed; did you mean 'bfloat16'"),
        (lambda: models.create("vit_b16", mlp_linear="dence"), "'dence'; did you mean 'dense'"),
        (lambda: models.create("mixer_b16", width="wide"), "model.width='wide' is of type str, expected int"),
    ],
)
def test_mistakes_name_the_nearest(call, message):
    with pytest.raises(UsageError, match=message):
        call()
