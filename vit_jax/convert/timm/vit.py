"""timm's ViTs and ResNet hybrids."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import Any

import numpy as np

from vit_jax.convert.fields import depth, grid, heads_of, patches, shape, stride
from vit_jax.convert.format import Limit, Writing
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.timm import eva, image
from vit_jax.convert.timm.config import CLIP_EPSILON, EPSILON, EPSILONS, Config, less_epsilon, ratio, write_config
from vit_jax.convert.timm.image import UNTOLD, Found, hidden, qk_norm, refused, renamed_parts
from vit_jax.convert.timm.rules import Layout, rules
from vit_jax.io.tensors import Tensor, Tensors
from vit_jax.layers.embed import sincos_positions
from vit_jax.layers.gated import Gated
from vit_jax.models import ALIASES, ViT
from vit_jax.models.describe import describe

POOLS = {"cls": "token", "gap": "avg", "map": "map"}
"""Our pooling -> timm's ``global_pool``."""
STEMS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
"""Bottlenecks per stage -> an architecture with that stem; no argument changes the stem."""
PLAIN = tuple(
    f"vit_{name}_224"
    for name in (
        "tiny_patch16", "small_patch8", "small_patch16", "small_patch32", "base_patch8", "base_patch16",
        "base_patch32", "large_patch14", "large_patch16", "large_patch32", "huge_patch14", "giant_patch14",
        "gigantic_patch14",
    )
)  # fmt: skip
LIMITS = (
    Limit(ViT, "pool", POOLS, f"timm has no pool={{0.pool!r}}; it has {', '.join(POOLS)}: write another format."),
    Limit(ViT, "pre_logits", (None,),
          "timm has no layer before the head (pre_logits={0.pre_logits}); write another format."),
    Limit(ViT, "stem", (None, *STEMS),
          f"timm has no stem={{0.stem}}; it has {', '.join(map(str, STEMS))}: write another format."),
    Limit(ViT, "", lambda m: m.norm_epsilon <= EPSILON or (m.norm_epsilon == CLIP_EPSILON and m.stem is None),
          EPSILONS),
    Limit(ViT, "", lambda m: not (m.final_norm and m.pool_norm),
          "timm has a norm after the blocks or one after pooling (fc_norm), not final_norm={0.final_norm} with "
          "pool_norm={0.pool_norm}; write another format."),
    Limit(ViT, "", lambda m: m.patch_bias != m.pre_norm,
          "timm has a norm before the blocks (pre_norm) or a bias of patches, not pre_norm={0.pre_norm} with "
          "patch_bias={0.patch_bias}; write another format."),
    Limit(ViT, "ffn", lambda ffn: ffn is None or ffn.norm_epsilon is None,
          "timm has no norm in the MLPs (ffn) of a ViT without rotary positions; write another format."),
    Limit(ViT, "", lambda m: m.norm_epsilon != CLIP_EPSILON or not (m.distilled or m.ffn),
          "timm has no norm_epsilon={0.norm_epsilon:g} with a distillation token or gated MLPs; write another format."),
    Limit(ViT, "", lambda m: not m.distilled or (m.ffn is None and m.stem is None),
          "timm has no distillation token with gated MLPs or a stem; write another format."),
    Limit(ViT, "", lambda m: not m.parallel or (m.norm_epsilon <= EPSILON and not m.distilled and not m.stem
                                                and (m.ffn, m.qk_norm) == (None, None)),
          "timm has no parallel blocks with norm_epsilon={0.norm_epsilon:g}, a stem, a distillation token, gated MLPs "
          "or norms of queries here, but plain ones; write another format."),
    Limit(ViT, "qk_norm", (None, "layer"), "timm has no qk_norm={0.qk_norm!r} here; write another format."),
    Limit(ViT, "", lambda m: not (m.cls_token and m.pool == "map"),
          "timm pools no class token by attention (pool='map'); write another format."),
)  # fmt: skip
"""What no file can tell timm of a ViT."""


def fields(theirs: Tensors, config: Config) -> Found:
    """See :data:`.image.Fields`.

    Raises:
      UserError: a pooling that ours has not, rows that may be two layouts; a tensor that tells a size is missing.
    """
    if "use_rot_pos_emb" in config.args:
        return eva.fields(theirs, config)
    stem = _stem(theirs)
    channels = (1, 3) if stem is None else (64,) if not stem else (256 * 2 ** (len(stem) - 1),)
    width, patch = patches(theirs, "patch_embed.proj.weight", *channels)
    unit = patch * stride(stem)
    blocks, parallel = depth(theirs, r"blocks\."), "blocks.0.in_proj.weight" in theirs
    mlp_dim, gated = (shape(theirs, "blocks.0.mlp_out_proj.weight", 2)[1], False) if parallel else hidden(theirs)
    has_cls, distilled = "cls_token" in theirs, "dist_token" in theirs
    registers = shape(theirs, "reg_token", 3)[1] if "reg_token" in theirs else 0
    pool, notes = _pool(theirs, has_cls, registers, config)
    heads, assumed = config.heads(width), {}
    if heads is None:
        heads, assumed["heads"] = heads_of(width, blocks, mlp_dim)
    if "pos_embed" not in theirs:
        raise refused("a model without learned positions", "there is no pos_embed")
    tokens, rows = has_cls + distilled + registers, shape(theirs, "pos_embed", 3)[1]
    before = (0, tokens) if config.args.get("no_embed_class") else (tokens, 0)
    prefix, side = grid(rows, before if tokens else (0,), config.grids(unit), "pos_embed", UNTOLD)
    grey = theirs["patch_embed.proj.weight"].shape[1] == 1
    layout = Layout(prefix, parallel or "blocks.0.attn.qkv.bias" in theirs, grey)
    if grey:
        notes.append("its images have one channel: those here are made grey (0.299 R + 0.587 G + 0.114 B)")
    if not layout.qkv_bias:
        notes.append("its queries, keys and values have no bias, here it is zero")
    if gated and config.architecture is None:
        assumed["activation"] = "the gates of its MLPs are assumed to be silu, as of DINOv2"
    if prefix and registers and theirs["pos_embed"].read()[:, has_cls + distilled : prefix].any():
        notes.append("the positions of its registers are added to the registers, the function is the same")
    found: dict[str, Any] = {"name": "vit", "patch": patch, "width": width, "depth": blocks, "heads": heads}
    found |= {"mlp_dim": mlp_dim, "pool": pool, "positions": "learn", "registers": registers, "pre_logits": None}
    found |= {"stem": stem, "stem_numerics": "original" if stem is None else "timm", "layer_scale": None}
    found |= {"cls_token": has_cls and pool == "gap", "final_norm": "norm.weight" in theirs, "distilled": distilled}
    found |= {"ffn": "gated" if gated else None, "qk_norm": qk_norm(theirs)}
    found |= {"activation": "silu"} if gated and config.architecture is None else {}
    found["pool_norm"] = "fc_norm.weight" in theirs
    found |= {"pre_norm": "norm_pre.weight" in theirs, "patch_bias": "patch_embed.proj.bias" in theirs}
    found["parallel"] = parallel
    if "blocks.0.ls1.gamma" in theirs or "blocks.0.ls.gamma" in theirs:
        found["layer_scale"] = config.args.get("init_values") or 1e-5
    return found, layout, side * unit, notes, assumed


def spelled(theirs: Tensors) -> tuple[Tensors, list[str]]:
    """The tensors by timm's own names, where they are those of DINOv2: gated MLPs, chunks of blocks, registers.

    Source: ``models/vision_transformer.py`` of facebookresearch/dinov2, whose blocks are numbered across its chunks.
    """
    gates = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
    notes, renamed = renamed_parts(theirs, gates, "its gated MLPs are called w12 and w3")
    theirs = renamed
    renamed = dict(theirs)
    chunked = {name: m for name in theirs if (m := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)", name))}
    places = {(m[1], m[2]) for m in chunked.values()}
    all_chunked = len(chunked) == sum(name.startswith("blocks.") for name in theirs)
    if chunked and all_chunked and len({block for _, block in places}) == len(places):
        renamed = {f"blocks.{m[2]}.{m[3]}" if (m := chunked.get(name)) else name: t for name, t in theirs.items()}
        notes.append(f"its {len(places)} blocks lie in chunks of their own numbers")
    registers = renamed.pop("register_tokens", None)
    if registers is not None:
        renamed["reg_token"], rows = registers, renamed.get("pos_embed")
        notes.append("its registers are called register_tokens")
        if rows is not None and len(rows.shape) == len(registers.shape) == 3:
            renamed["pos_embed"] = _with_rows(rows, registers.shape[1])
    return (renamed, notes) if notes else (theirs, [])


def _with_rows(rows: Tensor, count: int) -> Tensor:
    """Positions ``[1, N, D]`` with ``count`` of zero behind the class token's."""

    def read() -> np.ndarray:
        x = rows.read()
        return np.concatenate([x[:, :1], np.zeros_like(x[:, :1]).repeat(count, 1), x[:, 1:]], axis=1)

    return Tensor((rows.shape[0], rows.shape[1] + count, rows.shape[2]), rows.dtype, read)


def _stem(theirs: Tensors) -> tuple[int, ...] | None:
    """Bottlenecks per stage, () for the root alone, None without a stem."""
    if not any(name.startswith("patch_embed.backbone.") for name in theirs):
        return None
    pattern = re.compile(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.\d+\.conv3\.weight")
    stages = Counter(int(m[1]) for name in theirs if (m := pattern.fullmatch(name)))
    return tuple(stages[i] for i in range(len(stages)))


def _pool(theirs: Tensors, has_cls: bool, registers: int, config: Config) -> tuple[str, list[str]]:
    """How tokens become features, as far as tensors show it, else as the configuration says; and what is assumed."""
    normed = "fc_norm.weight" in theirs
    mapped = any(name.startswith("attn_pool.") for name in theirs)
    usual = "map" if mapped else "cls" if has_cls and not normed else "gap"
    declared = config.args.get("global_pool", POOLS[usual])
    pool = next((ours for ours, theirs in POOLS.items() if theirs == declared), None)
    unlike = has_cls if mapped else pool == "cls" and not has_cls
    bare = any(config.args.get(norm) is False for norm in ("fc_norm", "final_norm"))
    unlike |= pool == "gap" and has_cls and not normed and not bare
    if pool is None or (pool == "map") != mapped or unlike:
        token = "with a class token" if has_cls else "without a class token"
        raise refused(f"global_pool={declared!r} {token}", f"the tensors are those of {POOLS[usual]!r}")
    beside = registers or (has_cls and pool == "gap")
    if beside and pool != "cls" and config.args.get("pool_include_prefix", False) != (pool == "map"):
        which = "the grid alone, beside registers" if pool == "map" else "registers and grid"
        raise refused(f"global_pool={declared!r} over {which}", "see pool_include_prefix in config.json")
    assumed = normed and has_cls and "global_pool" not in config.args
    return pool, ["the grid is averaged, as a norm follows the pooling (fc_norm)"] if assumed else []


def content(pretrained: Stored, layout: Layout) -> tuple[dict[str, Any], list[str]]:
    """``config.json`` of weights in ``layout``, and what it cannot say."""
    model: Any = pretrained.model
    names = {ALIASES[name]: name for name in PLAIN}
    architecture = names.get(describe(model)["name"], "vit_base_patch16_224")
    notes = []
    if model.stem is not None:
        architecture = STEMS[model.stem]
        if model.stem_numerics != "timm":
            notes.append("timm's ResNet stem has other epsilons than the original's: its logits differ from ours")
    elif model.distilled:
        architecture = "deit_tiny_distilled_patch16_224"
    elif model.parallel:
        architecture = "vit_pwee_patch16_reg1_gap_256"  # the only way to its blocks
    elif model.ffn is not None:
        architecture = "vit_giant_patch14_dinov2"  # the only way to its MLPs
    elif model.norm_epsilon == CLIP_EPSILON:
        architecture = "vit_base_patch16_clip_224"  # the only way to this epsilon
    notes += less_epsilon(model.norm_epsilon, CLIP_EPSILON if "_clip_" in architecture else EPSILON)
    args = {
        "patch_size": model.patch,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": ratio(2 * model.ffn.hidden(model.mlp_dim) if model.ffn else model.mlp_dim, model.width),
        "global_pool": POOLS[model.pool],
        "qk_norm": model.qk_norm is not None,
        "pool_include_prefix": model.pool == "map" and model.registers > 0,
        "class_token": model.cls_token or model.pool == "cls",
        "reg_tokens": model.registers,
        "no_embed_class": layout.prefix == 0,
        "init_values": None if model.layer_scale is None else model.layer_scale or 1e-5,  # 0 would mean none
        "qkv_bias": layout.qkv_bias,
        "pre_norm": model.pre_norm,
        "final_norm": model.final_norm or model.pool_norm,
        "fc_norm": model.pool_norm,
        "act_layer": model.activation,
    }
    root = "" if model.stem is None else "backbone.stem.conv" if model.stem else "backbone.conv"
    config, more = write_config(pretrained, architecture, args, f"patch_embed.{root or 'proj'}")
    return config, [*notes, *more]


def write(pretrained: Stored) -> Writing:
    """A folder for ``timm.create_model("local-dir:...", pretrained=True)``.

    Where the class token's position is zero, positions are stored for the grid alone (``no_embed_class``).
    """
    model: Any = pretrained.model
    prefix, extra, fixed = 0, {}, []
    if (model.cls_token or model.pool == "cls") and model.positions == "learn":
        has = pretrained.params["position/embedding"].read()[:, : 1 + model.distilled].any()
        prefix = 1 + model.distilled + model.registers if has or model.distilled else 0
    config, notes = content(pretrained, Layout(prefix))
    if model.positions == "sincos2d":
        side = pretrained.preprocess.size // (model.patch * stride(model.stem))
        extra["pos_embed"] = Tensor.of(sincos_positions(side, side, model.width)[None])
        fixed = ["the fixed positions are written as numbers; read again they count as learned ones"]
    return Writing(Layout(prefix), {"config.json": config}, (*notes, *fixed), extra)


CODEC = dataclasses.replace(
    image.codec(ViT, r"patch_embed\.", 0.9, fields, rules, content, write, LIMITS, spelled),
    says={"ffn": Gated, "qk_norm": str, "distilled": bool, "parallel": bool},
)
