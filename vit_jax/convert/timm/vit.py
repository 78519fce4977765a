"""timm's ViTs and ResNet hybrids."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from vit_jax.convert.fields import depth, heads_of, patches, shape, square, stride
from vit_jax.convert.format import Limit, Writing
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.timm import image
from vit_jax.convert.timm.config import CLIP_EPSILON, EPSILON, EPSILONS, Config, less_epsilon, ratio, write_config
from vit_jax.convert.timm.image import Found, check_gate, refused
from vit_jax.convert.timm.rules import Layout, rules
from vit_jax.io.tensors import Tensor, Tensors
from vit_jax.layers.embed import sincos_positions
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
)  # fmt: skip
"""What no file can tell timm of a ViT."""


def fields(theirs: Tensors, config: Config) -> Found:
    """See :data:`.image.Fields`.

    Raises:
      UserError: a pooling that ours has not; a tensor that tells a size is missing.
    """
    stem = _stem(theirs)
    channels = 3 if stem is None else 64 if not stem else 256 * 2 ** (len(stem) - 1)
    width, patch = patches(theirs, "patch_embed.proj.weight", channels)
    unit = patch * stride(stem)
    blocks, mlp_dim = depth(theirs, r"blocks\."), shape(theirs, "blocks.0.mlp.fc1.weight", 2)[0]
    check_gate(theirs, "blocks.0.mlp", mlp_dim)
    has_cls = "cls_token" in theirs
    registers = shape(theirs, "reg_token", 3)[1] if "reg_token" in theirs else 0
    pool = "map" if any(name.startswith("attn_pool.") for name in theirs) else "cls" if has_cls else "gap"
    _check_pool(pool, has_cls, registers, config)
    heads, note = config.args.get("num_heads"), None
    if heads is None:
        heads, note = heads_of(width, blocks, mlp_dim)
    notes = [note] if note else []
    layout = Layout(_prefix(theirs, has_cls + registers, unit, config), "blocks.0.attn.qkv.bias" in theirs)
    if not layout.qkv_bias:
        notes.append("its queries, keys and values have no bias, here it is zero")
    rows = theirs["pos_embed"]
    if layout.prefix and registers and rows.read()[:, int(has_cls) : layout.prefix].any():
        notes.append("the positions of its registers are added to the registers, the function is the same")
    found: dict[str, Any] = {"name": "vit", "patch": patch, "width": width, "depth": blocks, "heads": heads}
    found |= {"mlp_dim": mlp_dim, "pool": pool, "positions": "learn", "registers": registers, "pre_logits": None}
    found |= {"stem": stem, "stem_numerics": "original" if stem is None else "timm", "layer_scale": None}
    if "blocks.0.ls1.gamma" in theirs:
        found["layer_scale"] = config.args.get("init_values") or 1e-5
    return found, layout, square(rows.shape[1] - layout.prefix, "pos_embed") * unit, notes


def _stem(theirs: Tensors) -> tuple[int, ...] | None:
    """Bottlenecks per stage, () for the root alone, None without a stem."""
    if not any(name.startswith("patch_embed.backbone.") for name in theirs):
        return None
    pattern = re.compile(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.\d+\.conv3\.weight")
    stages = Counter(int(m[1]) for name in theirs if (m := pattern.fullmatch(name)))
    return tuple(stages[i] for i in range(len(stages)))


def _check_pool(pool: str, has_cls: bool, registers: int, config: Config) -> None:
    declared = config.args.get("global_pool", POOLS[pool])
    if declared != POOLS[pool] or (pool == "map" and has_cls):
        token = "with a class token" if has_cls else "without a class token"
        raise refused(f"global_pool={declared!r} {token}", f"the tensors are those of {POOLS[pool]!r}")
    if registers and pool != "cls" and config.args.get("pool_include_prefix", False) != (pool == "map"):
        which = "the grid alone, beside registers" if pool == "map" else "registers and grid"
        raise refused(f"global_pool={declared!r} over {which}", "see pool_include_prefix in config.json")


def _prefix(theirs: Tensors, tokens: int, unit: int, config: Config) -> int:
    """Rows before the grid: 0 or ``tokens``, whichever leaves a square."""
    rows = shape(theirs, "pos_embed", 3)[1]
    fits = [n for n in (0, tokens) if rows > n and round((rows - n) ** 0.5) ** 2 == rows - n]
    if tokens == 0 or len(fits) < 2:
        return fits[0] if fits else tokens
    if (apart := config.args.get("no_embed_class")) is not None:
        return 0 if apart else tokens
    told = config.args.get("img_size") or config.images.get("input_size") or 0
    side = (told if isinstance(told, int) else told[-1]) // unit
    return tokens if rows - tokens == side * side else 0


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
    elif model.norm_epsilon == CLIP_EPSILON:
        architecture = "vit_base_patch16_clip_224"  # the only way to this epsilon, its own norm_pre switched off
    notes += less_epsilon(model.norm_epsilon, CLIP_EPSILON if "_clip_" in architecture else EPSILON)
    args = {
        "patch_size": model.patch,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": ratio(model.mlp_dim, model.width),
        "global_pool": POOLS[model.pool],
        "pool_include_prefix": model.pool == "map" and model.registers > 0,
        "class_token": model.pool == "cls",
        "reg_tokens": model.registers,
        "no_embed_class": layout.prefix == 0,
        "init_values": None if model.layer_scale is None else model.layer_scale or 1e-5,  # 0 would mean none
        "qkv_bias": layout.qkv_bias,
        "pre_norm": False,
        "fc_norm": False,
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
    if model.pool == "cls" and model.positions == "learn":
        prefix = 1 + model.registers if pretrained.params["position/embedding"].read()[:, 0].any() else 0
    config, notes = content(pretrained, Layout(prefix))
    if model.positions == "sincos2d":
        side = pretrained.preprocess.size // (model.patch * stride(model.stem))
        extra["pos_embed"] = Tensor.of(sincos_positions(side, side, model.width)[None])
        fixed = ["the fixed positions are written as numbers; read again they count as learned ones"]
    return Writing(Layout(prefix), {"config.json": config}, (*notes, *fixed), extra)


CODEC = image.codec(ViT, "patch_embed.", 0.9, fields, rules, content, write, LIMITS)
