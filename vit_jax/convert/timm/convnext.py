"""timm's ConvNeXts."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from vit_jax import architectures
from vit_jax.convert.fields import depth, patches, shape
from vit_jax.convert.format import Limit, Writing
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import Rule, rule, torch_conv, torch_linear, torch_mlp, torch_norm
from vit_jax.convert.timm import image
from vit_jax.convert.timm.config import Config, write_config
from vit_jax.convert.timm.image import Found, Parts, refused, side, usual
from vit_jax.convert.transforms import CONV1X1, LINEAR
from vit_jax.io.tensors import Tensors
from vit_jax.models import ConvNeXt
from vit_jax.models.convnext import KERNEL
from vit_jax.models.describe import describe
from vit_jax.models.stages import MLP_RATIO

PARTS = Parts(
    unsupported={
        r".*\.mlp\.grn\.": "global response norms (as of ConvNeXt V2)",
        r"stem\.[23]\.": "a stem of overlapping convolutions (as of convnext_atto_ols)",
        r"head\.pre_logits\.": "a layer before the head (as of convnext_large_mlp)",
        r"stages\.0\.downsample\.": "a stride before the first stage",
    },
    missing={
        "stem.1.bias": "norms without a bias (RMSNorm)",
        "stages.0.blocks.0.conv_dw.bias": "convolutions without a bias",
        "head.norm.weight|norm_pre.weight": "a model without a norm after the blocks",
    },
    classifier="head.fc",
    sized=False,
)
STAGES = 4
"""How many timm's have."""
SCALE = 1e-6
"""Initial layer scale where no file tells it."""
LIMITS = (
    Limit(ConvNeXt, "depths", lambda depths: len(depths) == STAGES,
          f"timm has ConvNeXts of {STAGES} stages, not of depths={{0.depths}}; write --to vit_jax."),
    Limit(ConvNeXt, "patch", (1, 3, 4),
          "timm has other strides behind patches of {0.patch} pixels; it is of 1, 3 or 4: write --to vit_jax."),
)  # fmt: skip
"""What no file can tell timm of a ConvNeXt."""
PAPER = {
    r"^downsample_layers\.0\.": "stem.",
    r"^downsample_layers\.(\d+)\.": r"stages.\1.downsample.",
    r"^stages\.(\d+)\.(\d+)\.": r"stages.\1.blocks.\2.",
    r"\.dwconv\.": ".conv_dw.",
    r"\.pwconv(\d)\.": r".mlp.fc\1.",
    r"\.grn\.": ".mlp.grn.",
    r"^norm\.": "head.norm.",
    r"^head\.(weight|bias)$": r"head.fc.\1",
}
"""Names of the paper's code -> timm's, as timm's own reader has it."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a file stores a ConvNeXt.

    Attributes:
      conv_mlp: whether the maps of MLPs are convolutions of 1x1.
    """

    conv_mlp: bool = False


def fields(theirs: Tensors, config: Config) -> Found:
    """See :data:`.image.Fields`.

    Raises:
      UserError: a size or an option that ours has not; a tensor that tells a size is missing.
    """
    usual(config, "a ConvNeXt", global_pool="avg", output_stride=32)
    depths = tuple(depth(theirs, rf"stages\.{i}\.blocks\.") for i in range(depth(theirs, r"stages\.")))
    widths = []
    for i in range(len(depths)):
        name = f"stages.{i}.blocks.0.conv_dw.weight"
        width, _, *kernel = shape(theirs, name, 4)
        if kernel != [KERNEL, KERNEL]:
            raise refused("depthwise convolutions of {}x{}".format(*kernel), f"{name} is one")
        if (hidden := theirs[f"stages.{i}.blocks.0.mlp.fc1.bias"].shape[0]) != MLP_RATIO * width:
            raise refused(f"MLPs of {hidden} units", f"those of stage {i} have {width} channels")
        widths.append(width)
    conv_mlp = len(theirs["stages.0.blocks.0.mlp.fc1.weight"].shape) == 4
    found: dict[str, Any] = {"name": "convnext", "depths": depths, "widths": tuple(widths)}
    found |= {"patch": patches(theirs, "stem.0.weight")[1], "final_norm": "norm_pre.weight" in theirs}
    scaled = "stages.0.blocks.0.gamma" in theirs
    found["layer_scale"] = (config.args.get("ls_init_value") or SCALE) if scaled else None
    size, notes = side(config, found["patch"] * 2 ** (len(depths) - 1))
    return found, Layout(conv_mlp), size, notes, {}


def rules(model: ConvNeXt, layout: Layout) -> list[Rule]:
    """Every tensor of a file and what it is of ``model``."""
    out = [*torch_conv("stem.0", "patch"), *torch_norm("stem.1", "norm_pre")]
    for i, count in enumerate(model.depths):
        if i:
            out += torch_norm(f"stages.{i}.downsample.0", f"stage_{i}_norm")
            out += torch_conv(f"stages.{i}.downsample.1", f"stage_{i}_down")
        for j in range(count):
            a, b = f"stages.{i}.blocks.{j}", f"stage_{i}/block_{j}"
            out += [*torch_conv(f"{a}.conv_dw", f"{b}/conv"), *torch_norm(f"{a}.norm", f"{b}/norm_mlp")]
            mlp = torch_mlp(f"{a}.mlp", f"{b}/mlp")
            if layout.conv_mlp:
                mlp = [dataclasses.replace(r, transform=CONV1X1) if r.transform is LINEAR else r for r in mlp]
            out += mlp if model.layer_scale is None else [*mlp, rule(f"{a}.gamma", f"{b}/scale_mlp")]
    out += torch_norm("norm_pre" if model.final_norm else "head.norm", "norm")
    return out + (torch_linear("head.fc", "head") if model.num_classes else [])


def content(pretrained: Stored, layout: Layout) -> tuple[dict[str, Any], list[str]]:
    """``config.json`` of weights in ``layout``, and what it cannot say."""
    model: Any = pretrained.model
    name = describe(model)["name"]
    args = {
        "depths": model.depths,
        "dims": model.widths,
        "patch_size": model.patch,
        "ls_init_value": model.layer_scale,
        "conv_mlp": layout.conv_mlp,
        "head_norm_first": model.final_norm,
        "act_layer": model.activation,
        "norm_eps": model.norm_epsilon,
        "global_pool": "avg",
    }
    architecture = name if name in architectures.CONVNEXT else "convnext_tiny"
    return write_config(pretrained, architecture, args, "stem.0", "head.fc", sized=False)


def write(pretrained: Stored) -> Writing:
    """A folder for ``timm.create_model("local-dir:...", pretrained=True)``."""
    config, notes = content(pretrained, Layout())
    return Writing(Layout(), {"config.json": config}, tuple(notes))


def spelled(theirs: Tensors) -> tuple[Tensors, list[str]]:
    """The tensors by timm's own names, where they are those of the paper's code (facebookresearch/ConvNeXt)."""
    if not any(name.startswith("downsample_layers.") for name in theirs):
        return theirs, []
    renamed = {}
    for name, tensor in theirs.items():
        for pattern, new in PAPER.items():
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    return renamed, ["its tensors have the names of the paper's code"]


START = r"stages\.0\.(blocks\.0\.conv_dw|0\.dwconv)\."
CODEC = image.codec(ConvNeXt, START, 0.875, fields, rules, content, write, LIMITS, spelled, parts=PARTS)
