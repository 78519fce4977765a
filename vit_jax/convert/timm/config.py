"""timm's ``config.json``: an architecture, the arguments that differ from it, and how its images are prepared.

Facts about timm are those of 1.0.31. Its model files store no epsilon, and what an architecture's function fixes is in
no file at all; :data:`UNSEEN` lists that.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from vit_jax.convert.fields import remainder, rgb
from vit_jax.convert.preprocess import RGB, Preprocess, said
from vit_jax.convert.pretrained import Stored
from vit_jax.data.framing import Framing, Mode, Rounding
from vit_jax.io.sidecar import About
from vit_jax.layers.norm import EPSILON
from vit_jax.types import UserError

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu")
"""Names of ``act_layer`` that mean the same here."""
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "box", "hamming", "lanczos")
CROP_MODES: dict[str, Mode] = {"center": "center", "squash": "squash", "border": "pad"}
"""timm's ``crop_mode`` -> ours."""
ROUNDING: Rounding = "torchvision"
CLIP_EPSILON = 1e-5
UNSEEN: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"vit_.*_clip_.*", {"norm_epsilon": CLIP_EPSILON}),
    (r"vit_.*_clip_quickgelu_.*", {"act_layer": "quick_gelu"}),
    (r"vit_(base_patch32|giantopt_patch16|so400m_patch16)_siglip_.*", {"act_layer": "gelu_tanh"}),
    (r"vit_large_patch16_siglip_(gap_)?512|naflexvit_.*_siglip", {"act_layer": "gelu_tanh"}),
    (r"vit_giantopt_.*|vit_base_patch16_gap_224", {"num_heads": 16}),
    (r"(deit3|flexivit)_.*|vit_base_mci_.*|vit_.*_(xp|radio|reg\d+)_.*", {"no_embed_class": True}),
    (r"vit_intern300m_.*", {"final_norm": False}),
    (r"vit_giant_patch14_(reg\d_)?(dinov2|tipsv2)", {"act_layer": "silu", "num_heads": 24}),
    (r"eva_giant_.*|beit.*", {"use_rot_pos_emb": False}),
    (r"eva(02)?_.*_clip_.*", {"global_pool": "token"}),
    (r"eva02_enormous_.*", {"use_post_norm": True}),
    (r"eva02_.*", {"use_rot_pos_emb": True, "ref_feat_shape": [16, 16]}),
    (r"vit_.*_rope_reg\d+_gap_.*", {"use_rot_pos_emb": True, "ref_feat_shape": [16, 16]}),
    (
        r"vit_.*_rope(_ape)?_\d+",
        {"use_rot_pos_emb": True, "rope_temperature": 100.0, "rope_grid_indexing": "xy", "global_pool": "token"},
    ),
    (
        r"vit_.*_rope_mixed(_ape)?_\d+",
        {"use_rot_pos_emb": True, "rope_type": "mixed", "rope_temperature": 10.0, "rope_grid_indexing": "xy"}
        | {"global_pool": "token"},
    ),
    (r"vit_.*_rope_(mixed_)?ape_\d+", {"no_embed_class": True}),
    (
        r"vit_.*_dinov3.*",
        {
            "norm_epsilon": CLIP_EPSILON,
            "use_rot_pos_emb": True,
            "rope_type": "dinov3",
            "rope_temperature": 100.0,
            "rope_rotate_half": True,
        },
    ),
    (r"vit_huge_plus_patch16_dinov3.*", {"num_heads": 20}),
    (r"vit_7b_patch16_dinov3", {"num_heads": 32}),
    (r"convnext_xxlarge|test_convnext.*", {"norm_epsilon": 1e-5}),
    (r"test_convnext2?", {"act_layer": "gelu_tanh"}),
    (r"test_vit2?", {"num_heads": 2}),
    (r"test_vit3", {"num_heads": 3, "pool_include_prefix": True}),
)
"""Architectures whose weights do not show all they fix -> those arguments; elsewhere timm's own defaults hold."""

HEADS: dict[str, dict[int, int]] = {
    "tiny": {192: 3}, "small": {384: 6, 768: 8}, "base": {768: 12, 896: 14}, "large": {1024: 16}, "huge": {1280: 16},
    "giant": {1408: 16, 1536: 24}, "gigantic": {1664: 16}, "so400m": {1152: 16}, "so150m": {896: 14},
    "so150m2": {832: 13}, "xsmall": {256: 4}, "wee": {256: 4}, "little": {320: 5}, "medium": {512: 8},
    "mediumd": {512: 8}, "pwee": {256: 4}, "betwixt": {640: 10}, "intern300m": {1024: 16},
}  # fmt: skip
"""Size in an architecture's name -> width -> heads."""

EPSILONS = (
    "timm has no norm_epsilon={0.norm_epsilon:g}, "
    f"but {EPSILON:g} and, in a ViT without a stem, {CLIP_EPSILON:g}; write another format."
)
"""The sentence for any other."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What ``config.json`` says.

    Attributes:
      architecture: name of timm's function, None without a file of timm's.
      args: arguments that are known of it.
      images: timm's ``pretrained_cfg``.
      class_names: where known.
    """

    architecture: str | None
    args: Mapping[str, Any]
    images: Mapping[str, Any]
    class_names: tuple[str, ...] = ()

    @property
    def activation(self) -> str:
        """``act_layer`` in our words."""
        name = self.args.get("act_layer") or "gelu"
        if not isinstance(name, str) or name.lower() not in ACTIVATIONS:
            raise UserError(f"act_layer={name!r} in config.json is unknown here; known are {', '.join(ACTIVATIONS)}.")
        return name.lower()

    def heads(self, width: int) -> int | None:
        """Those that it says or its architecture has, None where that cannot be told."""
        size = re.match(r"(?:(?:naflex)?vit|deit3?|flexivit|eva02?|beit(?:v2)?)_([a-z\d]+)_", self.architecture or "")
        return self.args.get("num_heads") or (HEADS.get(size[1], {}).get(width) if size else None)

    def grids(self, unit: int) -> list[tuple[int, int]]:
        """Height and width, in patches of ``unit`` pixels, of the images that it tells of: the model's come first."""
        told = (self.args.get("img_size"), (self.images.get("input_size") or ())[1:])
        pairs = [(x, x) if isinstance(x, int) else tuple(x or ()) for x in told]
        return [(x[0] // unit, x[1] // unit) for x in pairs if len(x) == 2 and all(isinstance(n, int) for n in x)]

    @property
    def epsilon(self) -> float:
        """Of the layer norms: that of ``norm_layer`` or, where none is named, of the architecture."""
        name = self.args.get("norm_layer")
        if name and str(name).replace("_", "").lower() not in ("layernorm", "layernormfp32"):
            raise UserError(f"norm_layer={name!r} in config.json is unknown here; only 'layernorm' is known.")
        usual = EPSILON if "norm_layer" in self.args else self.args.get("norm_epsilon", EPSILON)
        return self.args.get("norm_eps") or usual


def read_config(about: About) -> Config:
    """Reads ``about["config.json"]``; one that names no architecture is of another project and counts as absent."""
    raw = about.get("config.json", {})
    if "architecture" not in raw:
        return Config(None, {}, {})
    name, images = str(raw["architecture"]), raw.get("pretrained_cfg") or raw
    unseen = {k: v for pattern, args in UNSEEN if re.fullmatch(pattern, name) for k, v in args.items()}
    pool = {"global_pool": raw["global_pool"]} if "global_pool" in raw else {}
    labels = next((row[key] for row in (raw, images) for key in ("label_names", "labels") if row.get(key)), ())
    if isinstance(labels, Mapping):
        labels = [labels[key] for key in sorted(labels, key=lambda key: (len(str(key)), str(key)))]
    return Config(name, {**unseen, **pool, **(raw.get("model_args") or {})}, images, tuple(map(str, labels)))


def preprocess(
    config: Config, size: int, crop: float, patch: int = 1, usual: str = f"gelu and norm epsilon {EPSILON:g}"
) -> tuple[Preprocess, list[str]]:
    """How images of ``size`` pixels are prepared, and what was assumed.

    Args:
      config: what the file says.
      size: side that the positions are for.
      crop: for want of a file.
      patch: pixels per token, fewer than which an image may have beyond ``size``.
      usual: what else is assumed for want of a file.

    Raises:
      UserError: an entry that cannot be understood.
    """
    if config.architecture is None:
        assumed = "no config.json of timm's comes with it: images of mean and standard deviation 0.5, bicubic, crop"
        return Preprocess(size, crop, "bicubic", frame=Framing(rounding=ROUNDING)), [
            f"{assumed} {crop:g}, {usual} are assumed"
        ]
    images, notes = config.images, []
    mean = rgb(images, "mean", (0.485, 0.456, 0.406), "config.json")
    std = rgb(images, "std", (0.229, 0.224, 0.225), "config.json")
    kept = images.get("crop_pct") or 0.875
    if not isinstance(kept, int | float) or not 0 < kept <= 1:
        raise UserError(f"crop_pct={kept!r} in config.json is no fraction in (0, 1].")
    filtered = images.get("interpolation", "bicubic")
    if filtered not in INTERPOLATIONS:
        notes.append(f"interpolation {filtered!r} is not known here: bicubic instead")
        filtered = "bicubic"
    if (mode := images.get("crop_mode") or "center") not in CROP_MODES:
        notes.append(f"crop mode {mode!r} is not known here: the centre is cropped instead")
    told = list(images.get("input_size") or ())[1:] or [size, size]
    rest = remainder(told[0], size, patch) if told[0] == told[-1] else 0
    if told != [size + rest, size + rest]:
        notes.append(f"config.json tells of images of {told} pixels, the positions are for {size}: {size} it is")
    frame = Framing(CROP_MODES.get(mode, "center"), rounding=ROUNDING, rest=rest)
    if frame.mode == "pad":
        frame = dataclasses.replace(frame, fill=_fill(mean))
    return Preprocess(size, float(kept), filtered, mean, std, frame=frame), notes


def _fill(mean: RGB) -> tuple[int, int, int]:
    """The colour beside a padded image: the mean."""
    r, g, b = (round(255 * value) for value in mean)
    return r, g, b


def write_config(
    pretrained: Stored,
    architecture: str,
    args: Mapping[str, Any],
    first_conv: str,
    classifier: str = "head",
    sized: bool = True,
) -> tuple[dict[str, Any], list[str]]:
    """``config.json`` for ``timm.create_model("local-dir:...", pretrained=True)``, and what it cannot say.

    Args:
      pretrained: the model and its images.
      architecture: name of timm's function.
      args: those of its arguments that are of the family.
      first_conv: name of the module that sees the images.
      classifier: name of the module that gives the logits.
      sized: whether the family's function takes the size of the images.
    """
    model, notes = pretrained.model, []
    images, differ = said(pretrained.preprocess, "timm", ROUNDING, modes=CROP_MODES.values(), filters=INTERPOLATIONS)
    side = images.size + images.frame.rest
    if pretrained.output_activation != "softmax":
        notes.append(f"timm cannot say that the outputs are {pretrained.output_activation}s")
    labelled = len(pretrained.class_names) == model.num_classes > 0
    config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.width,
        "global_pool": args["global_pool"],
        **({"label_names": list(pretrained.class_names)} if labelled else {}),
        "model_args": {
            **args,
            **({"img_size": side} if sized else {}),
            "in_chans": 3,
            "num_classes": model.num_classes,
        },
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, side, side],
            "fixed_input_size": sized,
            "interpolation": images.interpolation,
            "crop_pct": images.crop,
            "crop_mode": next(theirs for theirs, ours in CROP_MODES.items() if ours == images.frame.mode),
            "mean": list(images.mean),
            "std": list(images.std),
            "num_classes": model.num_classes,
            "pool_size": None,
            "first_conv": first_conv,
            "classifier": classifier,
        },
    }
    if images.frame.mode == "pad" and images.frame.fill != _fill(images.mean):
        notes.append(f"timm fills up with the mean, not with {images.frame.fill}")
    return config, [*notes, *differ]


def less_epsilon(epsilon: float, there: float) -> list[str]:
    """What there is to say where timm's epsilon is larger, as it may be: never more than that little."""
    if epsilon == there:
        return []
    return [f"timm's norm epsilon is {there:g}, ours {epsilon:g}: the logits differ by a little"]


def ratio(hidden: int, width: int) -> float:
    """An ``mlp_ratio`` for which timm's ``int(width * ratio)`` is ``hidden``: their quotient where rounding allows."""
    quotient = hidden / width
    return quotient if int(width * quotient) == hidden else (hidden + 0.5) / width
