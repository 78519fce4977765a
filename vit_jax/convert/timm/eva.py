"""timm's ``Eva`` and ``Beit``: ViTs with rotary or relative positions, whose keys may have no bias."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

import numpy as np

from vit_jax.augment import NORMS
from vit_jax.convert.fields import depth, grid, heads_of, patches, shape, square
from vit_jax.convert.format import Limit, Writing
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.timm import image
from vit_jax.convert.timm.config import CLIP_EPSILON, EPSILON, Config, less_epsilon, ratio, write_config
from vit_jax.convert.timm.image import UNTOLD, Found, hidden, qk_norm, refused, renamed_parts
from vit_jax.convert.timm.rules import MIXED, Layout, rules
from vit_jax.io.tensors import Tensor, Tensors
from vit_jax.layers.gated import Gated
from vit_jax.layers.relative import PREFIX, Relative
from vit_jax.layers.rotary import Rope, RopeMixed
from vit_jax.models import ViT
from vit_jax.types import UserError

POOLS = {"cls": "token", "gap": "avg"}
"""Our pooling -> timm's ``global_pool``."""
CLIP = NORMS["clip"]()
TABLE = "blocks.0.attn.relative_position_bias_table"
BEIT = "beitv2_base_patch16_224"
ARCHITECTURES = {EPSILON: "eva02_tiny_patch14_224", CLIP_EPSILON: "vit_small_patch16_dinov3"}
"""Epsilon of the norms, which is no argument, -> an architecture with it; all else is."""
LIMITS = (
    Limit(ViT, "pool", POOLS, f"timm has no pool={{0.pool!r}} with rotary positions; it has {', '.join(POOLS)}."),
    Limit(ViT, "", lambda m: m.positions != "sincos2d",
          "timm has no fixed positions beside rotary ones; write --to vit_jax."),
    Limit(ViT, "norm_epsilon", ARCHITECTURES,
          "timm has no norm_epsilon={0.norm_epsilon:g} with rotary positions, but 1e-06, 1e-05; write --to vit_jax."),
    Limit(ViT, "", lambda m: m.activation == ("gelu" if m.ffn is None else "silu"),
          "with rotary positions timm has MLPs with gelu and gates with silu, not {0.activation}; write --to vit_jax."),
    Limit(ViT, "", lambda m: m.ffn is None or m.ffn.norm_epsilon in (None, m.norm_epsilon),
          "timm has one norm_epsilon for all norms; write --to vit_jax."),
    Limit(ViT, "", lambda m: m.patch_bias != m.pre_norm,
          "timm has a norm before the blocks (pre_norm) or a bias of patches, not pre_norm={0.pre_norm} with "
          "patch_bias={0.patch_bias}; write --to vit_jax."),
    Limit(ViT, "", lambda m: m.logit_bias is None or (m.rotary is None and (m.cls_token or m.pool == "cls")
          and not m.registers and m.qk_norm is None and m.qkv_bias != "qkv" and not m.pre_norm
          and m.final_norm != m.pool_norm and m.norm_epsilon == EPSILON
          and m.logit_bias.width in (None, m.logit_bias.height)),
          "timm has relative positions of square grids with a class token alone before the grid, keys without a bias, "
          "norm epsilon 1e-6 and one last norm; write --to vit_jax."),
    Limit(ViT, "", lambda m: m.stem is None and m.pre_logits is None and not m.distilled and m.qk_norm != "rms",
          "timm has no stem, layer before the head, distillation token or RMS norm of queries with rotary positions; "
          "write --to vit_jax."),
)  # fmt: skip
"""What no file can tell timm of a ViT with rotary positions."""


def fields(theirs: Tensors, config: Config) -> Found:
    """See :data:`.image.Fields`.

    Raises:
      UserError: there is no architecture, whose positions no tensor shows; a part that ours has not.
    """
    if config.architecture is None:
        raise UserError(
            "these are weights of timm's Eva, and no tensor shows its rotary positions; put the config.json of timm "
            'beside them, at least {"architecture": "vit_small_patch16_dinov3"} with the name of theirs.'
        )
    args = config.args
    if args.get("use_post_norm"):
        raise refused("norms after the branches of blocks (use_post_norm)", f"{config.architecture} has them")
    if "use_rot_pos_emb" not in args:
        why = "whether it has rotary positions no tensor shows; say use_rot_pos_emb in model_args of config.json"
        raise refused(f"architecture={config.architecture!r}", why)
    width, patch = patches(theirs, "patch_embed.proj.weight", 3)
    gate = "blocks.0.mlp.fc1_g.weight" in theirs
    mlp_dim, packed = (shape(theirs, "blocks.0.mlp.fc1_g.weight", 2)[0], False) if gate else hidden(theirs)
    has_cls = "cls_token" in theirs
    registers = shape(theirs, "reg_token", 3)[1] if "reg_token" in theirs else 0
    if (pool := args.get("global_pool", "avg")) not in POOLS.values():
        raise refused(f"global_pool={pool!r} with rotary positions", "only token and avg can")
    blocks, heads, assumed = depth(theirs, r"blocks\."), config.heads(width), {}
    if MIXED in theirs:
        heads = shape(theirs, MIXED, 4)[2]
    if heads is None:
        heads, assumed["heads"] = heads_of(width, blocks, mlp_dim)
    prefix, sides = 0, [side for side, other in config.grids(patch) if side == other]
    if "pos_embed" in theirs:
        tokens, rows = has_cls + registers, shape(theirs, "pos_embed", 3)[1]
        before = (0, tokens) if args.get("no_embed_class") else (tokens, 0)
        prefix, side = grid(rows, before if tokens else (0,), config.grids(patch), "pos_embed", UNTOLD)
    else:
        side = sides[0] if sides else 224 // patch
    split = "blocks.0.attn.q_proj.weight" in theirs
    biased = [x for x in ("q_bias", "q_proj.bias", "qkv.bias", "k_proj.bias") if f"blocks.0.attn.{x}" in theirs]
    every = "qkv.bias" in biased or "k_proj.bias" in biased
    side = _window(theirs) or side
    layout = Layout(prefix, eva=True, split=split, gate=gate)
    epsilon = config.epsilon
    normed = {"norm_epsilon": epsilon} if "blocks.0.mlp.norm.weight" in theirs else {}
    found: dict[str, Any] = {"name": "vit", "patch": patch, "width": width, "depth": blocks, "heads": heads}
    found |= {"mlp_dim": mlp_dim, "pool": "cls" if pool == "token" else "gap", "registers": registers}
    found |= {"cls_token": has_cls and pool == "avg", "positions": "learn" if "pos_embed" in theirs else "none"}
    found |= {"logit_bias": {"name": "relative", "height": side} if TABLE in theirs else None}
    found |= {"rotary": rotary(args), "qkv_bias": "qkv" if every else "qv" if biased else "none"}
    found |= {"qk_norm": qk_norm(theirs), "ffn": {"name": "gated", **normed} if gate or packed else None}
    found |= {"final_norm": "norm.weight" in theirs, "pool_norm": "fc_norm.weight" in theirs}
    found |= {"pre_norm": "norm_pre.weight" in theirs, "patch_bias": "patch_embed.proj.bias" in theirs}
    found |= {"activation": "silu" if gate or packed else "gelu"}
    found |= {"layer_scale": args.get("init_values") or 1e-5} if "blocks.0.gamma_1" in theirs else {}
    return found, layout, side * patch, [], assumed


def _window(theirs: Tensors) -> int | None:
    """Side of the grid of relative positions; None without them.

    Raises:
      UserError: their number is of no square grid with a class token.
    """
    if TABLE not in theirs:
        return None
    rows = shape(theirs, TABLE, 2)[0]
    side = (square(rows - PREFIX, TABLE) + 1) // 2
    if (2 * side - 1) ** 2 + PREFIX != rows:
        raise UserError(f"the {rows} rows of {TABLE} are of no square grid; only square images are converted.")
    return side


def rotary(args: Any) -> dict[str, Any] | None:
    """Our ``rope`` of timm's arguments, plain data; None where they have none.

    Raises:
      UserError: positions that ours has not.
    """
    if not args.get("use_rot_pos_emb"):
        return None
    kind, offset = args.get("rope_type") or "cat", args.get("rope_grid_offset") or 0
    if kind not in ("cat", "dinov3", "mixed") or offset:
        known = "'cat', 'dinov3' and 'mixed' without an offset can"
        raise refused(f"rope_type={kind!r} with rope_grid_offset={offset}", known)
    axes: Literal["yx", "xy"] = "xy" if args.get("rope_grid_indexing") == "xy" else "yx"
    base = float(args.get("rope_temperature", 10_000))
    if kind == "mixed":
        return {"name": "rope_mixed", "base": base, "axes": axes}
    reference = args.get("ref_feat_shape")
    span = reference if isinstance(reference, int) or reference is None else reference[0]
    rope = Rope(
        base,
        "half" if args.get("rope_rotate_half") else "interleaved",
        "unit" if kind == "dinov3" else span or "index",
        axes,
    )
    return {"name": "rope", **dataclasses.asdict(rope)}


def arguments(rope: Rope | RopeMixed) -> dict[str, Any]:
    """timm's arguments of it."""
    both = {"rope_temperature": rope.base, "rope_grid_indexing": "xy" if rope.axes == "xy" else "ij"}
    if isinstance(rope, RopeMixed):
        return {"rope_type": "mixed", **both}
    return {
        "rope_type": "dinov3" if rope.grid == "unit" else "cat",
        **both,
        "rope_rotate_half": rope.layout == "half",
        "ref_feat_shape": None if isinstance(rope.grid, str) else [rope.grid] * 2,
    }


def content(pretrained: Stored, layout: Layout) -> tuple[dict[str, Any], list[str]]:
    """``config.json`` of weights in ``layout``, and what it cannot say."""
    model: Any = pretrained.model
    args = {
        "patch_size": model.patch,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": ratio(model.ffn.hidden(model.mlp_dim) if model.ffn else model.mlp_dim, model.width),
        "swiglu_mlp": model.ffn is not None,
        "swiglu_align_to": int(layout.gate),
        "scale_mlp": bool(model.ffn and model.ffn.norm_epsilon is not None),
        "attn_type": "rope" if model.qkv_bias == "qkv" else "eva",
        "qkv_bias": model.qkv_bias != "none",
        "qkv_fused": not layout.split,
        "qk_norm": model.qk_norm is not None,
        "init_values": None if model.layer_scale is None else model.layer_scale or 1e-5,
        "class_token": model.cls_token or model.pool == "cls",
        "num_reg_tokens": model.registers,
        "no_embed_class": layout.prefix == 0,
        "use_abs_pos_emb": model.positions == "learn",
        "use_rot_pos_emb": model.rotary is not None,
        "use_pre_transformer_norm": model.pre_norm,
        "use_post_transformer_norm": model.final_norm,
        "use_fc_norm": model.pool_norm,
        "global_pool": POOLS[model.pool],
        **({} if model.rotary is None else arguments(model.rotary)),
    }
    architecture = ARCHITECTURES[model.norm_epsilon]
    if model.logit_bias is not None:
        same = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "swiglu_mlp", "scale_mlp", "qkv_bias",
                "init_values", "use_abs_pos_emb", "use_fc_norm", "global_pool")  # fmt: skip
        architecture, args = BEIT, {"use_rel_pos_bias": True, **{key: args[key] for key in same}}
    config, notes = write_config(pretrained, architecture, args, "patch_embed.proj")
    return config, [*less_epsilon(model.norm_epsilon, model.norm_epsilon), *notes]


def write(pretrained: Stored) -> Writing:
    """A folder for ``timm.create_model("local-dir:...", pretrained=True)``."""
    model: Any = pretrained.model
    prefix = 0
    if (model.cls_token or model.pool == "cls") and model.positions == "learn":
        prefix = 1 + model.registers if pretrained.params["position/embedding"].read()[:, 0].any() else 0
    layout = Layout(prefix, eva=True, gate=model.ffn is not None)
    config, notes = content(pretrained, layout)
    return Writing(layout, {"config.json": config}, tuple(notes))


PERIODS, COSINES = "rope_embed.periods", "rope.freqs_cos"
"""Buffers by which the files of DINOv3's and of EVA-02's authors are told."""
AUTHORS = {
    "storage_tokens": "reg_token", ".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2", ".mlp.w1.": ".mlp.fc1_g.",
    ".mlp.w2.": ".mlp.fc1_x.", ".mlp.w3.": ".mlp.fc2.", ".mlp.ffn_ln.": ".mlp.norm.",
}  # fmt: skip
"""Parts of names in their files -> timm's."""
PUBLISHED: dict[str, dict[str, Any]] = {
    PERIODS: {
        "architecture": "vit_small_patch16_dinov3", "global_pool": "token",
        "pretrained_cfg": {"input_size": [3, 256, 256], "crop_pct": 1.0, "interpolation": "bicubic"},
    },
    COSINES: {
        "architecture": "eva02_tiny_patch14_224", "global_pool": "avg",
        "pretrained_cfg": {"crop_pct": 1.0, "interpolation": "bicubic", "mean": CLIP.mean, "std": CLIP.std},
    },
}  # fmt: skip
"""Buffer -> what timm says of models with it, but for sizes."""


def spelled(theirs: Tensors) -> tuple[Tensors, list[str]]:
    """The tensors by timm's names, where they are those of DINOv3's or EVA-02's authors.

    Source: ``dinov3/layers/attention.py`` of facebookresearch/dinov3, where the bias of queries, keys and values is
    multiplied by a buffer ``bias_mask``, 0 for keys, NaN until weights are loaded; and
    ``EVA-02/asuka/modeling_finetune.py`` of baaivision/EVA.
    """
    if PERIODS not in theirs and COSINES not in theirs:
        return theirs, []
    whose = "DINOv3" if PERIODS in theirs else "EVA-02"
    notes, found = renamed_parts(theirs, AUTHORS, f"its tensors are called as by {whose}'s authors")
    for name in [name for name in found if name.endswith(".attn.qkv.bias") and f"{name}_mask" in found]:
        bias, start = found.pop(name), name.removesuffix("qkv.bias")
        for part, i in (("q_bias", 0), ("v_bias", 2)):
            found[f"{start}{part}"] = _third(bias, i)
    for name in [name for name in found if re.fullmatch(r"blocks\.\d+\.attn\.[qv]_bias", name)]:
        part = f"{name[:-6]}{name[-6]}_proj"
        if f"{part}.weight" in found:
            found[f"{part}.bias"] = found.pop(name)
    return found, notes


def _third(bias: Tensor, i: int) -> Tensor:
    return Tensor((bias.shape[0] // 3,), bias.dtype, lambda: np.split(bias.read(), 3)[i])


def alone(theirs: Tensors) -> dict[str, Any]:
    """What stands for a ``config.json``: without one, the weights may be of DINOv3's or EVA-02's authors."""
    return next((said for buffer, said in PUBLISHED.items() if buffer in theirs), {})


def takes(model: Any) -> bool:
    """Whether it is a ViT that only this class has."""
    normed = model.ffn is not None and getattr(model.ffn, "norm_epsilon", None) is not None
    return (
        model.rotary is not None
        or model.logit_bias is not None
        or model.qkv_bias != "qkv"
        or model.positions == "none"
        or normed
    )


CODEC = dataclasses.replace(
    image.codec(
        ViT,
        r"(blocks\.0\.(gamma_1|attn\.(q_bias|q_proj\.weight)|mlp\.fc1_g\.weight)|rope_embed\.periods|rope\.freqs_cos)$",
        0.9,
        fields,
        rules,
        content,
        write,
        LIMITS,
        spelled,
        alone,
    ),
    takes=takes,
    says={
        "rotary": (Rope, RopeMixed),
        "logit_bias": Relative,
        "ffn": Gated,
        "qk_norm": str,
        "qkv_bias": str,
        "positions": str,
    },
)
