"""timm's NF-ResNets."""

from __future__ import annotations

from typing import Any

from vit_jax import architectures
from vit_jax.convert.fields import depth, shape
from vit_jax.convert.format import Limit, Writing
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import Rule, rule, torch_conv, torch_linear
from vit_jax.convert.timm import image
from vit_jax.convert.timm.config import Config, write_config
from vit_jax.convert.timm.image import Found, Parts, refused, side, usual
from vit_jax.convert.transforms import reshape
from vit_jax.io.tensors import Tensors
from vit_jax.models import NFResNet
from vit_jax.models.describe import describe
from vit_jax.models.nf_resnet import EPSILON, GAMMAS, NARROWER

PARTS = Parts(
    unsupported={
        r"final_conv\.": "a convolution after the stages (as of NFNets and NF-RegNets)",
        r"stem\.conv\d\.": "a stem of several convolutions (as of NFNets)",
        r"stages\.\d+\.\d+\.attn": "weights of channels (as of nf_seresnet50)",
    },
    missing={"stem.conv.gain": "a stem without a scale", "stages.0.0.conv2.bias": "convolutions without a bias"},
    classifier="head.fc",
    sized=False,
    shared=(),
    usual="relu",
    unit=lambda model: 1,
)
ALPHA, UNIT = 0.2, 8
"""What timm multiplies residual branches by for want of an argument; what divides its numbers of channels."""
LIMITS = (
    Limit(NFResNet, "stem", ("7x7_pool",), "timm's NF-ResNets have a stem of 7x7, not {0.stem}; write --to vit_jax."),
    Limit(NFResNet, "stem_width", lambda width: width % UNIT == 0,
          f"timm rounds channels to multiples of {UNIT}, not stem_width={{0.stem_width}}; write --to vit_jax."),
    Limit(NFResNet, "widths", lambda widths: not any(w % (UNIT * NARROWER) for w in widths),
          f"timm rounds channels to multiples of {UNIT}, in the middle of blocks too; those of widths={{0.widths}} are "
          "others: write --to vit_jax."),
)  # fmt: skip
"""What no file can tell timm of an NF-ResNet."""
SCALE = reshape((-1, 1, 1, 1), (-1,))


def fields(theirs: Tensors, config: Config) -> Found:
    """See :data:`.image.Fields`.

    Raises:
      UserError: a size or an option that ours has not; a tensor that tells a size is missing.
    """
    fixed: dict[str, Any] = {"gamma_in_act": False, "same_padding": False, "std_conv_eps": EPSILON}
    usual(config, "an NF-ResNet", global_pool="avg", output_stride=32, **fixed)
    if (activation := config.args.get("act_layer") or "relu") not in GAMMAS:
        raise refused(f"act_layer={activation!r} of an NF-ResNet", f"only {', '.join(GAMMAS)} can")
    stem, _, *kernel = shape(theirs, "stem.conv.weight", 4)
    if kernel != [7, 7]:
        raise refused("a stem of {}x{} with a stride".format(*kernel), "only one of 7x7 can")
    depths = tuple(depth(theirs, rf"stages\.{i}\.") for i in range(depth(theirs, r"stages\.")))
    widths = []
    for i in range(len(depths)):
        name = f"stages.{i}.0.conv2.weight"
        inner, inputs, *_ = shape(theirs, name, 4)
        widths.append(shape(theirs, f"stages.{i}.0.conv3.weight", 4)[0])
        if not inner == inputs == widths[-1] // NARROWER:
            raise refused("groups or other proportions of channels", f"{name} is {theirs[name].shape}")
    found: dict[str, Any] = {"name": "nf_resnet", "depths": depths, "widths": tuple(widths), "stem_width": stem}
    found |= {"alpha": config.args.get("alpha", ALPHA), "skip_gain": "stages.0.0.skipinit_gain" in theirs}
    size, notes = side(config, 1)
    return {**found, "activation": activation}, None, size, notes, {}


def rules(model: NFResNet, layout: None) -> list[Rule]:
    """Every tensor of a file and what it is of ``model``."""
    out = _conv("stem.conv", "stem")
    for i, (count, width) in enumerate(zip(model.depths, model.widths, strict=True)):
        for j in range(count):
            a, b = f"stages.{i}.{j}", f"stage_{i}/block_{j}"
            if j == 0 and (i or model.stem_width != width):
                out += _conv(f"{a}.downsample.conv", f"{b}/conv_shortcut")
            for k in (1, 2, 3):
                out += _conv(f"{a}.conv{k}", f"{b}/conv_{k}")
            out += [rule(f"{a}.skipinit_gain", f"{b}/scale_skip")] if model.skip_gain else []
    return out + (torch_linear("head.fc", "head") if model.num_classes else [])


def _conv(theirs: str, ours: str) -> list[Rule]:
    return [*torch_conv(theirs, ours), rule(f"{theirs}.gain", f"{ours}/scale", SCALE)]


def content(pretrained: Stored, layout: None) -> tuple[dict[str, Any], list[str]]:
    """``config.json`` of weights, and what it cannot say."""
    model: Any = pretrained.model
    name = describe(model)["name"]
    args = {
        "depths": model.depths,
        "channels": model.widths,
        "stem_chs": model.stem_width,
        "act_layer": model.activation,
        "alpha": model.alpha,
        "skipinit": model.skip_gain,
        "global_pool": "avg",
    }
    architecture = name if name in architectures.NF_RESNET else "nf_resnet50"
    return write_config(pretrained, architecture, args, "stem.conv", "head.fc", sized=False)


def write(pretrained: Stored) -> Writing:
    """A folder for ``timm.create_model("local-dir:...", pretrained=True)``."""
    config, notes = content(pretrained, None)
    return Writing(None, {"config.json": config}, tuple(notes))


START = r"stages\.0\.0\.conv1\.gain$"
CODEC = image.codec(NFResNet, START, 0.9, fields, rules, content, write, LIMITS, parts=PARTS)
