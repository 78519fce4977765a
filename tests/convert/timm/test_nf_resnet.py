"""timm's NF-ResNets: of any size in and out, bit for bit; what they have and ours have not is refused by its name."""

import json

import numpy as np
import pytest

from tests.convert.cases import rest_slow
from tests.convert.timm_models import check_refused, check_rules, check_stages, convert, of_stages, photos, randomise
from vit_jax.convert.format import check
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import back
from vit_jax.convert.timm import FORMAT
from vit_jax.convert.timm import nf_resnet as codec
from vit_jax.io.tensors import Tensor, write_safetensors
from vit_jax.models import create, describe
from vit_jax.types import UserError

SMALL = {"depths": (1, 2), "channels": (64, 96), "stem_chs": 16, "num_classes": 5}
CASES = {
    "small": SMALL,
    "gains": {**SMALL, "skipinit": True, "act_layer": "silu", "alpha": 0.5, "num_classes": 0},
    "same_width": {**SMALL, "channels": (32, 32, 32), "depths": (2, 1, 1), "stem_chs": 32, "act_layer": "gelu"},
}


def made(timm, torch, case):
    """Every parameter drawn; convolutions' scales around 1."""
    module = randomise(torch, timm.create_model("nf_resnet26", **CASES[case]))
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("gain"):
                p.add_(1.0)
    images = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "input_size": (3, 40, 40)}
    return module, {"architecture": "nf_resnet26", "model_args": CASES[case], "pretrained_cfg": images}


@pytest.mark.parametrize("case", rest_slow(CASES, "gains"))
def test_tokens_and_logits_are_timms(case, timm, torch):
    module, about = made(timm, torch, case)
    pretrained, want = check_stages(torch, module, about, photos(41)[:, :40])  # odd sides, which are rounded up
    assert np.std(want["logits"]) > 0.1 and np.abs(want["tokens"]).max() < 30
    assert (pretrained.preprocess.size, pretrained.preprocess.mean) == (40, (0.4, 0.5, 0.6))
    assert pretrained.notes == ()


@pytest.mark.thorough
def test_timm_builds_what_is_written(timm, torch, tmp_path):
    model = create(
        "nf_resnet", depths=(1, 2), widths=(32, 64), stem_width=8, alpha=0.5, activation="silu", num_classes=3
    )
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=shape, scale=0.5) for path, shape in describe.shapes(model, 32).items()}
    tensors = {path: Tensor.of(x.astype(np.float32)) for path, x in params.items()}
    preprocess = Preprocess(32, 0.95, "bilinear", (0.1, 0.2, 0.3))
    pretrained = Stored(model, tensors, preprocess, ("ant", "bee", "cat"), source="it")
    writing = FORMAT.write(pretrained)
    tensors = back(FORMAT.rules(model, writing.layout), pretrained.params, name="it")
    write_safetensors(tmp_path / "model.safetensors", tensors, {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(writing.about["config.json"]))
    assert writing.notes == () and writing.about["config.json"]["architecture"] == "nf_resnet50"
    images = photos(32)
    logits = FORMAT.peer(tmp_path / "model.safetensors", model)(images)
    want = of_stages(pretrained, images)["logits"]
    np.testing.assert_allclose(logits, want, atol=2e-5 * max(1, np.abs(want).max()))
    found = convert(tensors, writing.about["config.json"]).pretrained
    assert (found.model, found.preprocess, found.class_names) == (model, preprocess, pretrained.class_names)


ALIEN = {
    "nf_regnet_b0": "a convolution after the stages",
    "dm_nfnet_f0": "a convolution after the stages",
    "nf_seresnet26": "weights of channels",
    "nf_ecaresnet26": "weights of channels",
}


@pytest.mark.first(1)
@pytest.mark.parametrize("name", ALIEN)
def test_models_with_parts_that_ours_lack(name, timm):
    check_refused(timm, name, ALIEN[name])


MODEL = create("nf_resnet", depths=(1, 2), widths=(32, 64), stem_width=32, num_classes=2)


def named():
    """Shapes of a small one, by timm's names."""
    there = {k: Tensor.of(np.zeros(shape, np.float32)) for k, shape in describe.shapes(MODEL, 32).items()}
    return back(codec.rules(MODEL, None), there, name="it")


def test_what_no_tensor_tells():
    found = convert(named(), None)
    assert found.pretrained.model == MODEL and found.pretrained.preprocess.size == 224
    assert any("crop 0.9, relu are assumed" in note for note in found.pretrained.notes)
    for args, says in (
        ({"gamma_in_act": True}, "gamma_in_act=True of an NF-ResNet"),
        ({"std_conv_eps": 1e-6}, "std_conv_eps=1e-06 of an NF-ResNet"),
        ({"act_layer": "tanh"}, r"act_layer='tanh' of an NF-ResNet .*\(only relu, gelu, silu can\)"),
    ):
        with pytest.raises(UserError, match=says):
            convert(named(), {"architecture": "nf_resnet26", "model_args": args})
    grouped = {**named(), "stages.1.0.conv2.weight": Tensor.of(np.zeros((16, 8, 3, 3), np.float32))}
    with pytest.raises(UserError, match=r"groups or other proportions .*stages.1.0.conv2.weight is \(16, 8, 3, 3\)"):
        convert(grouped, None)
    small = {**named(), "stem.conv.weight": Tensor.of(np.zeros((32, 3, 3, 3), np.float32))}
    with pytest.raises(UserError, match="a stem of 3x3 with a stride"):
        convert(small, None)


def test_every_parameter_has_one_rule():
    check_rules(codec, codec.rules(MODEL, None), describe.shapes(MODEL, 32))


def test_what_timm_has_not():
    check(create("nf_resnet26"), FORMAT, ())
    for fields, says in (
        ({"stem": "3x3"}, "a stem of 7x7, not 3x3"),
        ({"stem_width": 12}, "not stem_width=12"),
        ({"widths": (24, 32, 32, 32)}, r"of widths=\(24, 32, 32, 32\)"),
    ):
        with pytest.raises(UserError, match=says):
            check(create("nf_resnet", **fields), FORMAT, ())
