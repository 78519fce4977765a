"""timm's MobileNets: of any size in, of its own sizes out, running statistics too, bit for bit."""

import json
import math

import numpy as np
import pytest

from tests.convert.cases import rest_slow
from tests.convert.timm_models import check_refused, check_rules, check_stages, convert, photos, randomise, same_bits
from vit_jax.convert import read, verify, write
from vit_jax.convert.format import check
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored, leaves
from vit_jax.convert.rules import back
from vit_jax.convert.timm import FORMAT
from vit_jax.convert.timm import mobilenet as codec
from vit_jax.io.tensors import Tensor
from vit_jax.models import create, describe
from vit_jax.trees import nested
from vit_jax.types import UserError


def thin(timm, torch, name, **args):
    """One of a tenth of the channels; running statistics are those of noise."""
    if name.startswith("mobilenetv2"):
        from timm.models.efficientnet import _gen_mobilenet_v2 as make
    else:
        from timm.models.mobilenetv3 import _gen_mobilenet_v3 as make
    torch.manual_seed(0)
    module = randomise(torch, make(name, 0.1, num_classes=5, **args))
    for part in module.modules():
        if hasattr(part, "running_var"):
            part.momentum = None
    with torch.no_grad():
        module.train()(torch.randn(8, 3, 48, 48))
    return module.eval()


CASES = {
    "v2": ("mobilenetv2_100", {"depth_multiplier": 0.3}),
    "large": ("mobilenetv3_large_100", {"bn_eps": 1e-3}),
    "small": ("mobilenetv3_small_100", {}),
}


@pytest.mark.parametrize("case", rest_slow(CASES, "small"))
def test_tokens_and_logits_are_timms(case, timm, torch):
    name, args = CASES[case]
    module = thin(timm, torch, name, **args)
    about = {"architecture": name, "model_args": {k: v for k, v in args.items() if k == "bn_eps"}}
    about["pretrained_cfg"] = {"mean": (0.4, 0.5, 0.6), "input_size": (3, 50, 50)}
    pretrained, want = check_stages(torch, module, about, photos(41)[:, :40])  # odd sides, which are rounded up
    assert np.abs(np.diff(want["logits"], axis=0)).max() > 0.03 and np.abs(want["tokens"]).max() < 60
    assert (pretrained.preprocess.size, pretrained.model.norm_epsilon) == (50, args.get("bn_eps", 1e-5))
    assert [note for note in pretrained.notes if "left out (the steps of training, counted)" in note]


def drawn(model):
    rng = np.random.default_rng(0)

    def draw(path, shape):
        x = rng.standard_normal(shape) * (math.prod(shape[:-1]) ** -0.5 if path.endswith("kernel") else 0.1)
        return (np.exp(x) if path.endswith("/var") else x + path.endswith("scale")).astype(np.float32)

    params = {path: Tensor.of(draw(path, shape)) for path, shape in describe.shapes(model, 32).items()}
    variables = nested({path: draw(path, shape) for path, shape in describe.variables(model, 32).items()})
    preprocess = Preprocess(32, 0.95, "bilinear", (0.1, 0.2, 0.3))
    names = ("ant", "bee", "cat")
    return Stored(model, params, preprocess, names, source="it", variables=variables)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields"), [("mobilenetv3_small_050", {"norm_epsilon": 1e-3}), ("mobilenetv2_035", {})]
)
def test_timm_builds_what_is_written(name, fields, timm, torch, tmp_path):
    """And it comes back, statistics and all."""
    pretrained = drawn(create(name, num_classes=3, **fields))
    assert write.save(pretrained, tmp_path / "out", "timm") == []
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["architecture"] == name and about["model_args"].get("bn_eps", 1e-5) == pretrained.model.norm_epsilon
    assert all(gap.ok for gap in verify.verify(pretrained, [tmp_path / "out"]))
    with read.load(tmp_path / "out") as found:
        assert (found.model, found.preprocess) == (pretrained.model, pretrained.preprocess)
        for path, tensor in {**pretrained.params, **leaves(pretrained.variables)}.items():
            again = {**found.params, **leaves(found.variables)}[path]
            assert same_bits(again.read(), tensor.read()), path


ALIEN = {
    "efficientnet_b0": "stages of other kernels",
    "tf_mobilenetv3_small_100": "padding on one side",
    "tf_mobilenetv3_large_minimal_100": "padding on one side",
    "mnasnet_100": "stages of other kernels",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIEN)
def test_models_with_parts_that_ours_lack(name, timm):
    check_refused(timm, name, ALIEN[name])


MODEL = create("mobilenetv3_small_050", num_classes=2)


def shapes(model):
    return {**describe.shapes(model, 32), **describe.variables(model, 32)}


def named():
    """Shapes of a small one, by timm's names."""
    there = {k: Tensor.of(np.zeros(shape, np.float32)) for k, shape in shapes(MODEL).items()}
    return back(codec.rules(MODEL, None), there, name="it")


def test_what_no_tensor_tells():
    there = named()
    found = convert(there, None)
    assert found.pretrained.model == MODEL and found.pretrained.preprocess.size == 224
    assert any("strides of the paper, padding on all sides are assumed" in note for note in found.pretrained.notes)
    for config, says in (
        ({"architecture": "tf_mobilenetv3_small_050"}, "padding on one side"),
        ({"architecture": "x", "model_args": {"act_layer": "silu"}}, "act_layer='silu' of a MobileNet"),
    ):
        with pytest.raises(UserError, match=says):
            convert(there, config)
    other = {**there, "blocks.1.0.conv_dw.weight": Tensor.of(np.zeros((40, 1, 7, 7), np.float32))}
    with pytest.raises(UserError, match=r"stages of other kernels .*\(3, 7, 5, 5, 5\)"):
        convert(other, None)


def test_every_parameter_and_statistic_has_one_rule():
    check_rules(codec, codec.rules(MODEL, None), shapes(MODEL))


def test_what_timm_has_not():
    check(create("mobilenetv2_100", norm="frozen", num_classes=3), FORMAT, ())
    for fields in ({"stem_stride": 1}, {"activation": "relu"}, {"last_width": 100}):
        with pytest.raises(UserError, match=r"MobileNets of its own sizes alone .* write --to vit_jax\."):
            check(create("mobilenetv2_100", **fields), FORMAT, ())
