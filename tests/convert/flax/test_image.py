"""What names, shapes and ``vit_jax.json`` tell of a model, and the sentences where they do not."""

import dataclasses
import json

import numpy as np
import pytest

from vit_jax import models
from vit_jax.convert.flax.image import SIDECAR, about, read, stride, upstream
from vit_jax.convert.flax.rules import POSITIONS, Layout, rules
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import back, into
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe
from vit_jax.types import UsageError, UserError

VIT = {"patch": 8, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "num_classes": 5, "activation": "gelu_tanh"}
MIXER = {k: v for k, v in VIT.items() if k != "heads"} | {"token_dim": 7}
LINEN = Layout("params/", (0, 1, 0), POSITIONS[1], cls_position=False)


def unread(shapes):
    return {name: Tensor(shape, np.dtype("float32"), lambda: pytest.fail("was read")) for name, shape in shapes.items()}


def file(model, size=32, layout=Layout()):  # noqa: B008 (frozen)
    """Tensors of a file of ``model``, which must not be read."""
    theirs = back(rules(model, layout), unread(describe.shapes(model, size)), name="")
    return unread({name: tensor.shape for name, tensor in theirs.items()})


def beside(model, **fields):
    preprocess = Preprocess(**{"size": 32, "crop": 0.5, "mean": (0.1, 0.2, 0.3), **fields.pop("preprocess", {})})
    return json.loads(json.dumps(about(Stored(model, {}, preprocess, **fields))))


def build(found):
    return describe.build(found.model)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(),
        Layout("opt/target/", (0, 1, 0)),
        LINEN,
        dataclasses.replace(LINEN, prefix="", scanned=True),
        Layout("", (0, 1, 0), POSITIONS[2]),  # big_vision before 2022: in the encoder, and with a row for cls
        Layout("", (1, 2, 3), POSITIONS[2], cls_position=False),
    ],
)
def test_every_layout_is_found(layout):
    model = models.create("vit", **VIT)
    found = read(file(model, 32, layout), {})
    assert (build(found), found.layout, found.preprocess) == (model, layout, upstream(32))
    assert not found.unused
    assert any("no vit_jax.json describes it: GELU by tanh" in note and "32 px" in note for note in found.notes)


@pytest.mark.parametrize(
    ("stem", "pixels", "patch", "size"),
    [((), 4, 2, 24), ((3,), 4, 1, 8), ((1, 1), 8, 2, 16), ((1, 2, 1, 2), 32, 1, 64)],
)
def test_the_image_is_the_grid_times_the_stride(stem, pixels, patch, size):
    model = models.create("vit", **VIT | {"stem": stem, "patch": patch, "pool": "gap"})
    found = read(file(model, size), {})
    assert stride(stem) == pixels
    assert build(found) == model and found.preprocess.size == size
    assert any("average pooling is assumed" in note for note in found.notes)


@pytest.mark.parametrize(("patch", "size"), [(14, 224), (16, 224), (30, 210), (512, 512)])
def test_without_positions_a_size_that_patches_divide_is_assumed(patch, size):
    model = models.create("vit", **VIT | {"patch": patch, "positions": "sincos2d"})
    found = read(file(model, 2 * patch, LINEN), {})
    assert build(found) == model and found.preprocess.size == size
    assert any(f"sin-cos ones are assumed, for images of {size} px" in note for note in found.notes)
    found = read(file(model, 2 * patch, LINEN), beside(model, preprocess={"size": 4 * patch}))
    assert found.preprocess.size == 4 * patch


@pytest.mark.parametrize(
    "model",
    [
        models.create("vit", **VIT | {"activation": "gelu", "norm_epsilon": 1e-5, "dropout": 0.1, "dtype": "bfloat16"}),
        models.create("vit", **VIT | {"patch": 1, "stem": (2,), "stem_numerics": "timm"}),
        models.create("mixer", **MIXER | {"activation": "quick_gelu", "num_classes": 0}),
    ],
)
def test_the_sidecar_says_what_shapes_leave_open(model):
    found = read(file(model), beside(model, class_names=("a", "b"), output_activation="sigmoid"))
    assert build(found) == model
    assert found.preprocess == Preprocess(32, 0.5, mean=(0.1, 0.2, 0.3))
    assert (found.class_names, found.output_activation, found.notes) == (("a", "b"), "sigmoid", ())


def test_a_field_that_the_sidecar_leaves_out_has_our_default_not_the_originals():
    sidecar = {SIDECAR: {"model": {"name": "vit", "width": 16}, "preprocess": {"size": 32}}}
    found = read(file(models.create("vit", **VIT)), sidecar)
    assert build(found).activation == models.ViT().activation != "gelu_tanh"


def test_where_the_sidecar_contradicts_them_the_tensors_are_right():
    model, other = (models.create("vit", **VIT | {"heads": heads, "depth": heads}) for heads in (2, 4))
    found = read(file(model), beside(other, preprocess={"size": 64}))
    assert build(found) == model and found.preprocess.size == 32
    assert found.notes == (
        "vit_jax.json says depth=4, the tensors say 2, which is taken",
        "vit_jax.json says heads=4, the tensors say 2, which is taken",
        "vit_jax.json says size=64, the tensors say 32, which is taken",
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"model": {"name": "mixer"}, "preprocess": {"size": 32}}, "describes a Mixer, which the tensors are not"),
        ({"model": {"name": "vit", "witdh": 3}, "preprocess": {"size": 32}}, "unknown key 'model.witdh'.*'width'"),
        ({"model": "vit", "preprocess": {"size": 32}}, "model='vit' is of type str, expected an object"),
        ({"model": {"name": "vit"}}, "missing key 'vit_jax.json.preprocess'"),
        ({"model": {"name": "vit"}, "preprocess": {"size": "32"}}, "size='32' is of type str"),
        (
            {"model": {"name": "vit"}, "preprocess": {"size": 32}, "output_activation": "probit"},
            "'probit' is not allowed",
        ),
        ([], "vit_jax.json=\\[\\] is of type list"),
    ],
)
def test_a_damaged_sidecar_is_a_sentence(content, says):
    with pytest.raises(UserError, match=says):
        read(file(models.create("vit", **VIT)), {SIDECAR: content})
    assert issubclass(UsageError, UserError)


BLOCK = "Transformer/encoderblock_0"


def damaged(model, changes, layout=Layout()):  # noqa: B008 (frozen)
    theirs = file(model, layout=layout)
    for name, shape in changes.items():
        if shape is None:
            del theirs[name]
        else:
            theirs |= unread({name: shape})
    return theirs


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embedding/kernel": None}, "lack embedding/kernel, which tells the size of the model; get the whole file"),
        ({"Transformer/posembed_input/pos_embedding": None}, "lack Transformer/posembed_input/pos_embedding"),
        ({f"{BLOCK}/MlpBlock_3/Dense_0/kernel": None}, f"lack {BLOCK}/MlpBlock_3/Dense_0/kernel"),
        (
            {f"{BLOCK}/MultiHeadDotProductAttention_1/query/kernel": None},
            f"lack {BLOCK}/MultiHeadDotProductAttention_1/query/kernel",
        ),
        ({"embedding/kernel": (8, 4, 3, 16)}, "patches of 8x4 pixels; only square"),
        ({"embedding/kernel": (192, 16)}, r"embedding/kernel has the shape \(192, 16\), expected 4 axes"),
        ({"Transformer/posembed_input/pos_embedding": (1, 7, 16)}, "holds 6 positions, no square grid"),
        (
            {"Transformer/encoderblock_9/x": (1,)},
            "lacks Transformer/encoderblock_2, but has Transformer/encoderblock_9",
        ),
        ({"block1/unit1/x": (1,), "block3/unit1/x": (1,)}, "lacks block2, but has block3; it is not complete"),
        ({"block1/unit2/x": (1,)}, "lacks block1/unit1, but has block1/unit2"),
    ],
)
def test_what_decides_the_size_must_be_there(changes, says):
    with pytest.raises(UserError, match=says):
        read(damaged(models.create("vit", **VIT), changes), {})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stem/kernel": None}, "lack stem/kernel"),
        ({"MixerBlock_0/token_mixing/Dense_0/kernel": None}, "lack MixerBlock_0/token_mixing/Dense_0/kernel"),
        ({"MixerBlock_0/channel_mixing/Dense_0/kernel": None}, "lack MixerBlock_0/channel_mixing/Dense_0/kernel"),
        ({"MixerBlock_0/token_mixing/Dense_0/kernel": (15, 7)}, "holds 15 positions, no square grid"),
        ({"MixerBlock_3/x": (1,)}, "lacks MixerBlock_2, but has MixerBlock_3"),
    ],
)
def test_so_for_a_mixer(changes, says):
    with pytest.raises(UserError, match=says):
        read(damaged(models.create("mixer", **MIXER), changes), {})


def test_a_lost_bias_is_found_missing_by_its_name():
    """Sizes come from either leaf, so that the rules, not the size, are what a lost one contradicts."""
    model = models.create("vit", **VIT, pre_logits=9)
    theirs = damaged(model, {"head/kernel": None, "pre_logits/bias": None})
    found = read(theirs, {})
    assert build(found) == model
    with pytest.raises(UserError, match="pre_logits/bias, head/kernel are missing"):
        into(rules(model, found.layout), theirs, describe.shapes(model, 32), source="file")


def test_the_state_of_a_training_is_left_out_and_counted():
    model = models.create("vit", **VIT)
    state = {f"opt/0/mu/{name}": tensor for name, tensor in file(model).items()} | unread({"chrono/steps": ()})
    theirs = file(model, layout=LINEN) | state
    found = read(theirs, {})
    assert found.unused.keys() == state.keys() and build(found) == model
    shapes = describe.shapes(model, 32)
    _, notes = into(rules(model, LINEN), theirs, shapes, source="file", unused=found.unused)
    (note,) = notes
    assert f"and {len(state) - 3} more are left out (state of the training)" in note
