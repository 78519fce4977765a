"""timm's ``NaFlexVit`` with SigLIP 2's image tower, ``naflexvit_*_siglip``: images of any shape, attention pooling."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from vit_jax.convert.fields import depth, flat_patches, heads_of, shape
from vit_jax.convert.format import Codec, Limit, Reading, Writing
from vit_jax.convert.peer import torch_peer
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import Rule, rule, torch_blocks
from vit_jax.convert.timm.config import EPSILON, Config, preprocess, ratio, read_config, write_config
from vit_jax.convert.timm.image import MISSING, UNSUPPORTED, Found, Parts, architecture, build_peer, refused
from vit_jax.convert.timm.rules import Layout, head_rules, pool_rules
from vit_jax.convert.transforms import FLAT_PATCHES, reshape
from vit_jax.data.framing import Framing
from vit_jax.io.sidecar import About
from vit_jax.io.tensors import Tensors
from vit_jax.models import ViT
from vit_jax.types import Patches

ARCHITECTURE = "naflexvit_base_patch16_siglip"
POSITIONS = "embeds.pos_embed"
PARTS = Parts(
    unsupported=UNSUPPORTED | {
        r"embeds\.pos_embed_[yx]": "positions of rows and of columns",
        r"embeds\.(cls_token|reg_token)|cls_token|reg_token": "extra tokens of a NaFlexVit",
        r"embeds\.(norm|norm_input)\.": "a norm of patches",
    },
    missing={key: what for key, what in MISSING.items() if "patch_embed" not in key} | {
        "embeds.proj.bias": "patches without a bias",
        POSITIONS: "a NaFlexVit without learned positions",
        "attn_pool.latent": "a NaFlexVit without attention pooling, whose positions are resized otherwise,",
    },
    sized=False,
)  # fmt: skip
FIXED = {
    "pool": "map", "positions": "learn", "registers": 0, "stem": None, "pre_logits": None, "layer_scale": None,
    "cls_token": False, "pre_norm": False, "final_norm": True, "pool_norm": False, "patch_bias": True,
}  # fmt: skip
"""Fields that it leaves no choice of here."""
LIMITS = (
    Limit(
        ViT,
        "",
        lambda m: not _other(m) and m.norm_epsilon <= EPSILON,
        "timm's ViT with a position_grid is SigLIP 2's, not with {what}; write --to vit_jax.",
        lambda m: ", ".join(f"{k}={v!r}" for k, v in (_other(m) or {"norm_epsilon": m.norm_epsilon}).items()),
    ),
)


def _other(model: Any) -> dict[str, Any]:
    return {name: getattr(model, name) for name, value in FIXED.items() if getattr(model, name) != value}


def fields(theirs: Tensors, config: Config) -> Found:
    """See :data:`.image.Fields`.

    Raises:
      UserError: positions are resized otherwise than SigLIP 2's; a tensor that tells a size is missing.
    """
    name = config.architecture or ARCHITECTURE
    mode = config.args.get("pos_embed_interp_mode", "bilinear" if name.endswith("_siglip") else "bicubic")
    if mode != "bilinear" or config.args.get("pos_embed_ar_preserving"):
        raise refused("positions that are not resized as SigLIP 2's", f"{name} resizes them by {mode}")
    width, patch = flat_patches(theirs, "embeds.proj.weight")
    blocks, mlp_dim = depth(theirs, r"blocks\."), shape(theirs, "blocks.0.mlp.fc1.weight", 2)[0]
    _, rows, columns, _ = shape(theirs, POSITIONS, 4)
    if rows != columns:
        raise refused("positions of a grid that is not square", f"{POSITIONS} is of {rows} x {columns}")
    heads, assumed = config.heads(width), {}
    if heads is None:
        heads, assumed["heads"] = heads_of(width, blocks, mlp_dim)
    found: dict[str, Any] = {"name": "vit", "patch": patch, "width": width, "depth": blocks, "heads": heads}
    found |= {"mlp_dim": mlp_dim, "position_grid": rows, **FIXED}
    if config.architecture is None:
        found["activation"] = "gelu_tanh"
        assumed["activation"] = "gelu_tanh is assumed, as of SigLIP 2"
    return found, None, rows * patch, [], assumed


def read(theirs: Tensors, about: About) -> Reading:
    """See :class:`vit_jax.convert.format.Codec`; as many patches as the images that ``config.json`` tells of have."""
    config = read_config(about)
    model, layout, size, notes, assumed = architecture(theirs, config, fields, PARTS)
    told = (config.images.get("input_size") or (3, size, size))[1]
    images, more = preprocess(config, told // model["patch"] * model["patch"], 1.0, model["patch"])
    frame = Framing("patches", rounding=images.frame.rounding, patch=model["patch"])
    images = dataclasses.replace(images, crop=1.0, frame=frame)
    return Reading(model, images, config.class_names, layout, {}, (*notes, *more), assumed=assumed)


def rules(model: Any, layout: Any) -> list[Rule]:
    """Every tensor of a file and what it is of ``model``, a ViT."""
    side = model.position_grid
    return [
        rule(POSITIONS, "position/embedding", reshape((1, side, side, -1), (1, side * side, -1))),
        rule("embeds.proj.weight", "patch/kernel", FLAT_PATCHES),
        rule("embeds.proj.bias", "patch/bias"),
        *torch_blocks("blocks.", "encoder/block_", model, Layout().block),
        *pool_rules(model.heads),
        *head_rules(model),
    ]


def content(pretrained: Stored, layout: Any) -> tuple[dict[str, Any], list[str]]:
    """``config.json``, which says of images only how large a square of as many patches is."""
    model: Any = pretrained.model
    args = {
        "global_pool": "map",
        "pos_embed_grid_size": [model.position_grid] * 2,
        "patch_size": model.patch,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "act_layer": model.activation,
        "mlp_ratio": ratio(model.mlp_dim, model.width),
    }
    frame = dataclasses.replace(pretrained.preprocess.frame, mode="center")
    squares = dataclasses.replace(pretrained.preprocess, frame=frame)
    return write_config(
        dataclasses.replace(pretrained, preprocess=squares), ARCHITECTURE, args, "embeds.proj", sized=False
    )


def write(pretrained: Stored) -> Writing:
    """A folder for ``timm.create_model("local-dir:...", pretrained=True)``."""
    config, notes = content(pretrained, None)
    return Writing(None, {"config.json": config}, tuple(notes))


def peer(path: pathlib.Path, model: Any) -> Callable[..., Any]:
    """timm's model with the weights at ``path``; see :class:`vit_jax.convert.format.Codec`."""
    module = build_peer(path, CODEC, content, model, PARTS.sized)

    def forward(images: Any) -> Any:
        if not isinstance(images, Patches):
            return module(images)
        return module({"patches": images.pixels, "patch_coord": images.at.long(), "patch_valid": images.real})

    return torch_peer(forward)


CODEC = Codec(
    (ViT,), lambda names: POSITIONS in names or "embeds.proj.weight" in names, read, rules, write, peer, (), LIMITS,
    takes=lambda model: model.position_grid is not None, says={"position_grid": int},
)  # fmt: skip
