"""timm's ConvNeXts: of any size in and out, bit for bit; what they have and ours have not is refused by its name."""

import json
import re

import numpy as np
import pytest

from tests.convert.cases import rest_slow
from tests.convert.timm_models import (
    check_refused,
    check_rules,
    check_stages,
    convert,
    gaps,
    of_stages,
    photos,
    randomise,
    theirs_of_stages,
)
from vit_jax.convert.format import check
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import back
from vit_jax.convert.timm import FORMAT
from vit_jax.convert.timm import convnext as codec
from vit_jax.convert.timm.convnext import Layout
from vit_jax.io.tensors import Tensor, write_safetensors
from vit_jax.models import create, describe
from vit_jax.types import UserError

SMALL = {"depths": (1, 2, 1, 1), "dims": (8, 12, 16, 24), "num_classes": 5}
CASES = {
    "tiny": ("convnext_tiny", SMALL),
    "conv_mlp": ("convnext_atto", SMALL | {"act_layer": "relu"}),
    "norm_first": ("convnext_tiny_hnf", SMALL | {"num_classes": 0}),
    "bare": ("convnext_tiny", SMALL | {"ls_init_value": None, "norm_eps": 1e-3, "patch_size": 1}),
    "test": ("test_convnext2", {}),  # another epsilon and gelu_tanh, which no file tells
}


def theirs_of(timm, torch, case):
    name, args = CASES[case]
    torch.manual_seed(0)
    module = randomise(torch, timm.create_model(name, **args))
    images = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "input_size": (3, 64, 64)}
    return module, {"architecture": name, "model_args": args, "pretrained_cfg": images}


@pytest.mark.parametrize("case", rest_slow(CASES, "tiny", "conv_mlp", "norm_first"))
def test_tokens_and_logits_are_timms(case, timm, torch):
    module, about = theirs_of(timm, torch, case)
    pretrained, want = check_stages(torch, module, about, photos(64))
    assert np.std(want["logits"]) > 0.1 and np.abs(want["tokens"]).max() < 30
    assert (pretrained.preprocess.size, pretrained.preprocess.mean) == (64, (0.4, 0.5, 0.6))
    assert pretrained.notes == () and pretrained.model.norm_epsilon == module.stem[1].eps


WRITTEN = {
    "tiny": {"depths": (1, 1, 2, 1), "widths": (8, 8, 12, 16)},
    "named": {"name": "convnext_atto", "depths": (2, 2, 6, 2), "widths": (40, 80, 160, 320)},
    "bare": {
        "depths": (1, 1, 1, 1), "widths": (8, 8, 12, 16), "final_norm": True, "layer_scale": None, "patch": 1,
        "norm_epsilon": 1e-5, "activation": "gelu_tanh", "num_classes": 0,
    },
}  # fmt: skip


def drawn(case):
    model = create(**{"name": "convnext", "num_classes": 3, **WRITTEN[case]})
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=shape, scale=0.2) for path, shape in describe.shapes(model, 32).items()}
    names = ("ant", "bee", "cat")[: model.num_classes]
    tensors = {path: Tensor.of(x.astype(np.float32)) for path, x in params.items()}
    return Stored(model, tensors, Preprocess(32, 0.95, "bilinear", (0.1, 0.2, 0.3)), names, source="it")


@pytest.mark.parametrize("case", rest_slow(WRITTEN, "tiny", "bare"))
def test_timm_builds_what_is_written(case, timm, torch, tmp_path):
    pretrained = drawn(case)
    writing = FORMAT.write(pretrained)
    tensors = back(FORMAT.rules(pretrained.model, writing.layout), pretrained.params, name="it")
    write_safetensors(tmp_path / "model.safetensors", tensors, {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(writing.about["config.json"]))
    assert writing.notes == ()
    assert writing.about["config.json"]["architecture"] == ("convnext_atto" if case == "named" else "convnext_tiny")
    module = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = photos(32)
    want = of_stages(pretrained, images)
    assert gaps(theirs_of_stages(torch, module, images), want)["logits"] <= 2e-5 * max(1, np.abs(want["logits"]).max())
    peer = FORMAT.peer(tmp_path / "model.safetensors", pretrained.model)
    np.testing.assert_array_equal(peer(images), theirs_of_stages(torch, module, images)["logits"])
    found = convert(tensors, writing.about["config.json"]).pretrained
    assert (found.model, found.preprocess, found.class_names) == (
        pretrained.model,
        pretrained.preprocess,
        pretrained.class_names,
    )


ALIEN = {
    "convnextv2_atto": "global response norms",
    "convnext_atto_ols": "a stem of overlapping convolutions",
    "convnext_zepto_rms_ols": "a stem of overlapping convolutions",
    "convnext_atto_rms": "norms without a bias",
    "convnext_large_mlp": "a layer before the head",
    "test_convnext3": "depthwise convolutions of 5x5",
    "edgenext_xx_small": "cannot be expressed here",
}


@pytest.mark.parametrize("name", ALIEN)
def test_models_with_parts_that_ours_lack(name, timm):
    check_refused(timm, name, ALIEN[name])


def named(**changes):
    """Shapes of a small one, by timm's names."""
    model = create("convnext", depths=(1, 1, 1, 1), widths=(4, 4, 6, 8), num_classes=2)
    shapes = describe.shapes(model, 32)
    there = {path: Tensor.of(np.zeros(shape, np.float32)) for path, shape in shapes.items()}
    tensors = back(codec.rules(model, Layout()), there, name="it")
    return {**tensors, **{k: Tensor.of(np.zeros(shape, np.float32)) for k, shape in changes.items()}}


def test_what_no_tensor_tells():
    found = convert(named(), None)
    assert found.pretrained.preprocess.size == 224
    assert any("images of 224 pixels are assumed" in note for note in found.pretrained.notes)
    assert (found.pretrained.model.activation, found.pretrained.model.layer_scale) == ("gelu", 1e-6)
    for config, says in (
        ({"model_args": {"output_stride": 16}}, "output_stride=16 of a ConvNeXt"),
        ({"model_args": {"global_pool": "max"}}, "global_pool='max'"),
        ({"pretrained_cfg": {"input_size": [3, 236, 236]}}, r"images of \[236, 236\] pixels .* whose side 32 divides"),
        ({"pretrained_cfg": {"input_size": [3, 224, 256]}}, "only squares can"),
    ):
        with pytest.raises(UserError, match=says):
            convert(named(), {"architecture": "convnext_tiny", **config})
    with pytest.raises(UserError, match="MLPs of 12 units"):
        convert(named(**{"stages.0.blocks.0.mlp.fc1.bias": (12,)}), None)


def test_the_papers_own_names():
    """As timm's ``checkpoint_filter_fn`` reads them."""
    ours = {"stem": "downsample_layers.0", "head.fc": "head", "head.norm": "norm"}

    def own(name):
        name = next((name.replace(a, b, 1) for a, b in ours.items() if name.startswith(f"{a}.")), name)
        name = re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", name).replace(".blocks.", ".")
        return name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")

    there = named()
    theirs = {own(name): tensor for name, tensor in there.items()}
    assert {"downsample_layers.3.1.weight", "stages.1.0.pwconv2.bias", "norm.bias", "head.weight"} <= theirs.keys()
    assert FORMAT.matches(theirs)
    found, notes = FORMAT.spelled(theirs)
    assert found == there and len(notes) == 1 and FORMAT.spelled(there) == (there, [])
    with pytest.raises(UserError, match="global response norms"):
        FORMAT.read(FORMAT.spelled({**theirs, "stages.0.0.grn.gamma": there["head.fc.bias"]})[0], {})


def test_every_parameter_has_one_rule():
    model = create("convnext", depths=(1, 2, 1, 1), widths=(4, 4, 6, 8))
    check_rules(codec, FORMAT.rules(model, Layout()), describe.shapes(model, 32))


def test_what_timm_has_not():
    check(create("convnext_small"), FORMAT, ())
    for fields, says in (
        ({"depths": (1, 2), "widths": (4, 8)}, r"ConvNeXts of 4 stages, not of depths=\(1, 2\)"),
        ({"patch": 2}, "behind patches of 2 pixels"),
    ):
        with pytest.raises(UserError, match=says):
            check(create("convnext", **fields), FORMAT, ())
