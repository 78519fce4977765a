"""timm's MobileNetV2s and V3s."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vit_jax import architectures
from vit_jax.convert.fields import depth, shape
from vit_jax.convert.format import Limit, Writing
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import Rule, rule, torch_batch_norm, torch_conv, torch_linear
from vit_jax.convert.timm import image
from vit_jax.convert.timm.config import Config, write_config
from vit_jax.convert.timm.image import Found, Parts, refused, side, usual
from vit_jax.convert.transforms import CONV, CONV1X1
from vit_jax.io.tensors import Tensors
from vit_jax.models import MobileNet
from vit_jax.models.describe import describe

PARTS = Parts(
    unsupported={
        r"blocks\.\d+\.\d+\.(conv_exp|layer_scale|aa|conv_s2d)": "blocks of another kind",
        r"norm_head\.": "a norm after the map of the average",
    },
    missing={
        "bn1.running_mean": "norms without running statistics",
        "blocks.0.0.conv_dw.weight": "blocks of another kind",
    },
    classifier="classifier",
    sized=False,
    shared=(),
    usual="strides of the paper, padding on all sides",
    unit=lambda model: 1,
)
EPSILON = 1e-5
SIZES = ("mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv3_small_100")
"""Of each family the one that others have strides and nonlinearities of, which no tensor shows."""
LIMITS = (
    Limit(MobileNet, "", lambda model: model.stem_stride == 2 and _row(model) in architectures.MOBILENET,
          "timm has MobileNets of its own sizes alone (vit_jax models 'mobilenet*'); write --to vit_jax."),
)  # fmt: skip
"""What no file can tell timm of a MobileNet."""


def _row(model: MobileNet) -> str:
    """The name of the architecture, whatever the epsilon is, which timm is told."""
    return str(describe(model.clone(norm_epsilon=EPSILON))["name"])


def fields(theirs: Tensors, config: Config) -> Found:
    """See :data:`.image.Fields`.

    Raises:
      UserError: a size or an option that ours has not; a tensor that tells a size is missing.
    """
    usual(config, "a MobileNet", global_pool="avg", output_stride=32, pad_type="", act_layer=None, head_norm=False)
    if (config.architecture or "").startswith("tf_"):
        raise refused("padding on one side, which no tensor shows", f"{config.architecture} has it")
    late = "conv_head.bias" in theirs  # after the average
    last = depth(theirs, r"blocks\.") - 1 if late else None
    stages = range(depth(theirs, r"blocks\.") - late)
    found: dict[str, Any] = {"widths": [], "hidden": [], "kernels": [], "excite": []}
    for i in stages:
        blocks = range(depth(theirs, rf"blocks\.{i}\."))
        convs = [shape(theirs, f"blocks.{i}.{j}.conv_dw.weight", 4) for j in blocks]
        end = "conv_pwl" if f"blocks.{i}.0.conv_pwl.weight" in theirs else "conv_pw"
        found["hidden"].append(tuple(conv[0] for conv in convs))
        found["kernels"].append(convs[0][-1])
        found["widths"].append(shape(theirs, f"blocks.{i}.0.{end}.weight", 4)[0])
        found["excite"].append(f"blocks.{i}.0.se.conv_reduce.weight" in theirs)
    found = {key: tuple(value) for key, value in found.items()}
    like = next((row for row in map(architectures.MOBILENET.get, SIZES) if row and _alike(found, row, late)), None)
    if like is None:
        raise refused("stages of other kernels", f"they are {found['kernels']}, with squeeze {found['excite']}")
    found |= {key: like[key] for key in ("strides", "activations", "activation")}
    found |= {"name": "mobilenet", "stem_width": shape(theirs, "conv_stem.weight", 4)[0]}
    found["last_width"] = shape(theirs, f"blocks.{last}.0.conv.weight" if late else "conv_head.weight", 4)[0]
    found["head_width"] = shape(theirs, "conv_head.weight", 4)[0] if late else None
    found["norm_epsilon"] = config.args.get("bn_eps", EPSILON)
    size, notes = side(config, 1)
    return found, None, size, notes, {}


def _alike(found: dict[str, Any], row: architectures.Row, late: bool) -> bool:
    """Whether weights are of the family of a row, of other sizes perhaps."""
    return late == (row["head_width"] is not None) and all(found[key] == row[key] for key in ("kernels", "excite"))


def rules(model: MobileNet, layout: None) -> list[Rule]:
    """Every tensor of a file and what it is of ``model``."""
    out = [*torch_conv("conv_stem", "stem", bias=False), *torch_batch_norm("bn1", "norm_stem")]
    before = model.stem_width
    for i, row in enumerate(model.hidden):
        for j, hidden in enumerate(row):
            out += _block(f"blocks.{i}.{j}", f"stage_{i}/block_{j}", hidden != before, model.excite[i])
            before = model.widths[i]
    last = (
        ("conv_head", "bn2")
        if model.head_width is None
        else tuple(f"blocks.{len(model.hidden)}.0.{x}" for x in ("conv", "bn1"))
    )
    out += [rule(f"{last[0]}.weight", "last/kernel", CONV1X1), *torch_batch_norm(last[1], "norm_last")]
    if model.head_width is not None:
        out += [rule("conv_head.weight", "map/kernel", CONV1X1), rule("conv_head.bias", "map/bias")]
    return out + (torch_linear("classifier", "head") if model.num_classes else [])


def _block(theirs: str, ours: str, expands: bool, excite: bool) -> Iterator[Rule]:
    """An inverted residual; timm's block without the first map calls the last one and the norms otherwise."""
    names = ("conv_pw", "conv_dw", "conv_pwl") if expands else ("conv_dw", "conv_pw")
    for i, (a, b) in enumerate(zip(names, ("expand", "conv", "project")[-len(names) :], strict=True), 1):
        yield rule(f"{theirs}.{a}.weight", f"{ours}/{b}/kernel", CONV if b == "conv" else CONV1X1)
        yield from torch_batch_norm(f"{theirs}.bn{i}", f"{ours}/norm_{b}")
    for name in ("reduce", "expand") if excite else ():
        yield rule(f"{theirs}.se.conv_{name}.weight", f"{ours}/excite/{name}/kernel", CONV1X1)
        yield rule(f"{theirs}.se.conv_{name}.bias", f"{ours}/excite/{name}/bias")


def content(pretrained: Stored, layout: None) -> tuple[dict[str, Any], list[str]]:
    """``config.json`` of weights, and what it cannot say."""
    model: Any = pretrained.model
    args = {"global_pool": "avg"} | ({} if model.norm_epsilon == EPSILON else {"bn_eps": model.norm_epsilon})
    return write_config(pretrained, _row(model), args, "conv_stem", "classifier", sized=False)


def write(pretrained: Stored) -> Writing:
    """A folder for ``timm.create_model("local-dir:...", pretrained=True)``."""
    config, notes = content(pretrained, None)
    return Writing(None, {"config.json": config}, tuple(notes))


START = r"blocks\.0\.0\.conv_dw\."
CODEC = image.codec(MobileNet, START, 0.875, fields, rules, content, write, LIMITS, parts=PARTS)
