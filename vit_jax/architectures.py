"""Published architectures as plain data: name -> fields of the model's class, and what others call it.

Nothing is imported here: who only asks for names waits for no JAX.
"""

from __future__ import annotations

import fnmatch
import math
from typing import Any

Row = dict[str, Any]


def _vit(width: int, depth: int, heads: int, mlp_dim: int) -> dict[str, int]:
    return {"width": width, "depth": depth, "heads": heads, "mlp_dim": mlp_dim}


VIT_SIZES = {
    "ti": _vit(192, 12, 3, 768),
    "s": _vit(384, 12, 6, 1536),
    "b": _vit(768, 12, 12, 3072),
    "l": _vit(1024, 24, 16, 4096),
    "h": _vit(1280, 32, 16, 5120),
    "g": _vit(1408, 40, 16, 6144),
    "G": _vit(1664, 48, 16, 8192),
    "so400m": _vit(1152, 27, 16, 4304),
}
"""Touvron et al. 2021 (Ti, S), Dosovitskiy et al. 2021 table 1 (B, L, H), Zhai et al. 2022 table 2 (g, G),
Alabdulmohsin et al. 2023, arXiv:2305.13035 (So400m)."""

VIT_PATCHES = {
    "ti": (16,),
    "s": (8, 14, 16, 32),
    "b": (8, 14, 16, 32),
    "l": (14, 16, 32),
    "h": (14, 16),
    "g": (14, 16),
    "G": (14,),
    "so400m": (14, 16),
}

VIT: dict[str, Row] = {
    f"vit_{size}{patch}": {**VIT_SIZES[size], "patch": patch}
    for size, patches in VIT_PATCHES.items()
    for patch in patches
} | {
    "vit_r_ti16": {**VIT_SIZES["ti"], "patch": 8, "stem": ()},
    "vit_r26_s32": {**VIT_SIZES["s"], "patch": 1, "stem": (2, 2, 2, 2)},
    "vit_r26_b32": {**VIT_SIZES["b"], "patch": 1, "stem": (2, 2, 2, 2)},
    "vit_r50_b16": {**VIT_SIZES["b"], "patch": 1, "stem": (3, 4, 9)},
    "vit_r50_l32": {**VIT_SIZES["l"], "patch": 1, "stem": (3, 4, 6, 3)},
}
"""Of ``ViT``; a hybrid's name gives the total stride, its ``patch`` counts on the stem's grid."""


DINO = {"layer_scale": 1e-5}
DINOV3 = {
    "patch": 16, "positions": "none", "rotary": "rope", "qkv_bias": "none", "registers": 4, "norm_epsilon": 1e-5,
    **DINO,
}  # fmt: skip
SWIGLU = {"ffn": "gated", "activation": "silu"}
EVA02 = {
    "patch": 14, "pool": "gap", "cls_token": True, "final_norm": False, "pool_norm": True, "qkv_bias": "qv",
    "rotary": "rope(10000, interleaved, 16)", **SWIGLU,
}  # fmt: skip
NAFLEX = {"patch": 16, "position_grid": 16}
DINOV2_SIZES = {"vits14": VIT_SIZES["s"], "vitb14": VIT_SIZES["b"], "vitl14": VIT_SIZES["l"]} | {
    "vitg14": {**_vit(1536, 40, 24, 4096), **SWIGLU}
}

MODERN: dict[str, Row] = {
    **{f"deit_{size}16_distilled": {**VIT_SIZES[size], "patch": 16, "distilled": True} for size in ("ti", "s", "b")},
    **{f"dinov2_{name}": {**size, "patch": 14, **DINO} for name, size in DINOV2_SIZES.items()},
    **{f"dinov2_{name}_reg": {**size, "patch": 14, "registers": 4, **DINO} for name, size in DINOV2_SIZES.items()},
    "dinov3_vits16": {**VIT_SIZES["s"], **DINOV3},
    "dinov3_vits16plus": {**VIT_SIZES["s"], **DINOV3, **SWIGLU},
    "dinov3_vitb16": {**VIT_SIZES["b"], **DINOV3},
    "dinov3_vitl16": {**VIT_SIZES["l"], **DINOV3},
    "dinov3_vith16plus": {**_vit(1280, 32, 20, 5120), **DINOV3, **SWIGLU},
    "dinov3_vit7b16": {**_vit(4096, 40, 32, 8192), **DINOV3, **SWIGLU},
    "eva02_ti14": {**_vit(192, 12, 3, 512), **EVA02},
    "eva02_s14": {**_vit(384, 12, 6, 1024), **EVA02},
    "eva02_b14": {**_vit(768, 12, 12, 2048), **EVA02, "ffn": "gated(None, 1e-6)"},
    "eva02_l14": {**_vit(1024, 24, 16, 2730), **EVA02, "ffn": "gated(None, 1e-6)"},
    **{f"naflexvit_{size}16": {**VIT_SIZES[size], **NAFLEX, "pool": "map"} for size in ("b", "so400m")},
}
"""Of ``ViT``: Touvron et al. 2021 (DeiT), Oquab et al. 2024 (DINOv2), Siméoni et al. 2025, arXiv:2508.10104 (DINOv3, as
published without biases of queries, keys and values, which are 0), Fang et al. 2023, arXiv:2303.11331 (EVA-02),
Tschannen et al. 2025, arXiv:2502.14786 (the image towers of SigLIP 2 for any shape)."""


def _mixer(width: int, depth: int, token_dim: int, mlp_dim: int) -> dict[str, int]:
    return {"width": width, "depth": depth, "token_dim": token_dim, "mlp_dim": mlp_dim}


MIXER_SIZES = {"s": _mixer(512, 8, 256, 2048), "b": _mixer(768, 12, 384, 3072), "l": _mixer(1024, 24, 512, 4096)}
"""Tolstikhin et al. 2021, table 1."""

MIXER: dict[str, Row] = {
    f"mixer_{size}{patch}": {**MIXER_SIZES[size], "patch": patch} for size in MIXER_SIZES for patch in (16, 32)
}
"""Of ``Mixer``."""

MONARCH_MIXER: dict[str, Row] = {
    f"m2_vit_{size}{patch}": {
        "width": width,
        "depth": 12,
        "mlp_dim": 4 * width,
        "patch": patch,
        "mlp_linear": "block_diagonal(4)",
    }
    for size, width in (("ti", 192), ("s", 384), ("b", 768))
    for patch in (16, 32)
}
"""Of ``MonarchMixer``."""

VIM: dict[str, Row] = {
    f"vim_{size}16": {"width": width, "depth": 24, "patch": 16} for size, width in (("ti", 192), ("s", 384), ("b", 768))
}
"""Of ``Vim``: Zhu et al. 2024, the published sizes with cls in the middle."""


def _stages(width: int, depths: tuple[int, ...], **fields: Any) -> Row:
    """Of a model of four stages, each of twice the channels of the one before."""
    return {"depths": depths, "widths": tuple(width * 2**i for i in range(len(depths))), **fields}


CONVNEXT: dict[str, Row] = {
    "convnext_atto": _stages(40, (2, 2, 6, 2)),
    "convnext_femto": _stages(48, (2, 2, 6, 2)),
    "convnext_pico": _stages(64, (2, 2, 6, 2)),
    "convnext_nano": _stages(80, (2, 2, 8, 2)),
    "convnext_tiny": _stages(96, (3, 3, 9, 3)),
    "convnext_tiny_hnf": _stages(96, (3, 3, 9, 3), final_norm=True),
    "convnext_small": _stages(96, (3, 3, 27, 3)),
    "convnext_base": _stages(128, (3, 3, 27, 3)),
    "convnext_large": _stages(192, (3, 3, 27, 3)),
    "convnext_xlarge": _stages(256, (3, 3, 27, 3)),
    "convnext_xxlarge": _stages(384, (3, 4, 30, 3), norm_epsilon=1e-5),
}
"""Of ``ConvNeXt``: Liu et al. 2022, section 3 (tiny to xlarge); the others are timm's and of the same names there."""

HORNET: dict[str, Row] = {
    f"hornet_{size}_{filters}": _stages(width, (2, 3, 18, 2), **fields)
    for size, width in (("tiny", 64), ("small", 96), ("base", 128), ("large", 192))
    for filters, fields in (("7x7", {}), ("gf", {"global_filters": True}))
}
"""Of ``HorNet``: Rao et al. 2022, table 7; names are the published code's."""


NF_RESNET: dict[str, Row] = {
    f"nf_resnet{layers}": {"depths": depths}
    for layers, depths in ((26, (2, 2, 2, 2)), (50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)))
}
"""Of ``NFResNet``: Brock et al. 2021, arXiv:2101.08692; names are timm's."""


def eights(x: float) -> int:
    """The multiple of 8 next to a number of channels, of two the larger; the next one where that is a tenth less."""
    near = max(8, int(x + 4) // 8 * 8)
    return near + 8 if near < 0.9 * x else near


MOBILENET_V2 = tuple(
    (3, (expansion,) * depth, width, False, "relu6", stride)
    for expansion, width, depth, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    )
)  # fmt: skip
"""Of each stage: kernel, hidden channels of each block to those that come in, width, squeeze and excitation,
nonlinearity, stride. Sandler et al. 2018, table 2."""
MOBILENET_V3 = {
    "large": (
        (3, (1,), 16, False, "relu", 1), (3, (4, 3), 24, False, "relu", 2), (5, (3, 3, 3), 40, True, "relu", 2),
        (3, (6, 2.5, 2.3, 2.3), 80, False, "hard_swish", 2), (3, (6, 6), 112, True, "hard_swish", 1),
        (5, (6, 6, 6), 160, True, "hard_swish", 2),
    ),
    "small": (
        (3, (1,), 16, True, "relu", 2), (3, (4.5, 3.67), 24, False, "relu", 2),
        (5, (4, 6, 6), 40, True, "hard_swish", 2), (5, (3, 3), 48, True, "hard_swish", 1),
        (5, (6, 6, 6), 96, True, "hard_swish", 2),
    ),
}  # fmt: skip
"""Howard et al. 2019, tables 1 and 2."""


def mobilenet(stages: tuple[Any, ...], stem: int, share: float = 1.0, deeper: float = 1.0) -> Row:
    """A MobileNet's stages with ``share`` of the channels; all but the first and last ``deeper`` times as deep."""
    before, hidden, widths = stem, [], []
    for i, (_, expansions, width, *_) in enumerate(stages):
        row, out = [], eights(width * share)
        ends = deeper == 1 or i in (0, len(stages) - 1)
        for expansion in expansions if ends else expansions[:1] * math.ceil(len(expansions) * deeper):
            row.append(before if expansion == 1 else eights(before * expansion))
            before = out
        hidden.append(tuple(row))
        widths.append(out)
    kernels, _, _, excite, activations, strides = zip(*stages, strict=True)
    return {
        "stem_width": stem, "widths": tuple(widths), "hidden": tuple(hidden), "kernels": kernels, "strides": strides,
        "excite": excite, "activations": activations,
    }  # fmt: skip


def _mobilenet_v2(share: float, deeper: float = 1.0) -> Row:
    """The deeper ones keep the first convolution and the last map as they are."""
    stem, last = (32, 1280) if deeper > 1 else (eights(32 * share), max(1280, eights(1280 * share)))
    row = mobilenet(MOBILENET_V2, stem, share, deeper)
    return {**row, "activation": "relu6", "last_width": last, "head_width": None}


def _mobilenet_v3(size: str, share: float) -> Row:
    stem = 16 if share < 0.75 else eights(16 * share)
    last, head = {"large": (960, 1280), "small": (576, 1024)}[size]
    row = mobilenet(MOBILENET_V3[size], stem, share)
    return {**row, "activation": "hard_swish", "last_width": eights(last * share), "head_width": head}


MOBILENET: dict[str, Row] = {
    **{f"mobilenetv2_{round(100 * share):03d}": _mobilenet_v2(share) for share in (0.35, 0.5, 0.75, 1.0, 1.4)},
    "mobilenetv2_110d": _mobilenet_v2(1.1, 1.2),
    "mobilenetv2_120d": _mobilenet_v2(1.2, 1.4),
    **{f"mobilenetv3_large_{round(100 * share):03d}": _mobilenet_v3("large", share) for share in (0.75, 1.0)},
    **{f"mobilenetv3_small_{round(100 * share):03d}": _mobilenet_v3("small", share) for share in (0.5, 0.75, 1.0)},
}
"""Of ``MobileNet``, names are timm's: Sandler et al. 2018 and Howard et al. 2019, with shares of the channels."""


def image_row(name: str, **fields: Any) -> Row:
    """Fields of an image tower: the name of an image model and what differs."""
    return {"name": name, "num_classes": 0, **fields}


def text_row(width: int, heads: int, **fields: Any) -> Row:
    """Fields of a text tower of the usual proportions and what differs."""
    return {"width": width, "heads": heads, "mlp_dim": 4 * width, **fields}


CLIP_IMAGE = {"patch_bias": False, "pre_norm": True, "norm_epsilon": 1e-5}
CLIP_TEXT = {"norm_epsilon": 1e-5}
SIGLIP = {"image_head": "none", "text_head": "biased", "temperature": 10.0, "bias": -10.0}
SIGLIP_TEXT = {"vocab_size": 32000, "length": 64, "end_id": 1, "pad_id": 1, "causal": False, "pool": "last"}


def _clip(image: str, embed_dim: int, heads: int, **more: Any) -> Row:
    text = text_row(embed_dim, heads, **CLIP_TEXT, **more)
    return {"image_tower": image_row(image, **CLIP_IMAGE), "text_tower": text, "embed_dim": embed_dim}


def _siglip(image: str, width: int, heads: int, **text: Any) -> Row:
    tower = text_row(width, heads, **{**SIGLIP_TEXT, **text})
    return {"image_tower": image_row(image, pool="map"), "text_tower": tower, "embed_dim": width, **SIGLIP}


def _naflex(image: str, width: int, heads: int, **text: Any) -> Row:
    row = _siglip(image, width, heads, vocab_size=256_000, pad_id=0, **text)
    return {**row, "image_tower": {**row["image_tower"], **NAFLEX}}


TWO_TOWER: dict[str, Row] = {
    "clip_vit_b32": _clip("vit_b32", 512, 8),
    "clip_vit_b16": _clip("vit_b16", 512, 8),
    "clip_vit_l14": _clip("vit_l14", 768, 12),
    "clip_vit_h14": _clip("vit_h14", 1024, 16, depth=24),
    "clip_vit_g14": _clip("vit_g14", 1024, 16, depth=24),
    "clip_vit_G14": _clip("vit_G14", 1280, 20, depth=32),
    "siglip_vit_b16": _siglip("vit_b16", 768, 12),
    "siglip_vit_l16": _siglip("vit_l16", 1024, 16, depth=24),
    "siglip_vit_so400m14": _siglip("vit_so400m14", 1152, 16, depth=27, mlp_dim=4304),
    "siglip2_vit_b16_naflex": _naflex("vit_b16", 768, 12),
    "siglip2_vit_so400m16_naflex": _naflex("vit_so400m14", 1152, 16, depth=27, mlp_dim=4304),
    "lit_vit_b16": {
        "image_tower": image_row("vit_b16"),
        "text_tower": text_row(768, 12),
        "embed_dim": 768,
        "image_head": "none",
        "text_head": "biased",
        "temperature": 10.0,
        "lock": "image",
    },
}
"""Of ``TwoTower``: Radford et al. 2021 (CLIP, the sizes of open_clip; H, g and G: Cherti et al. 2023), Zhai et al.
2023 (SigLIP), Tschannen et al. 2025 (SigLIP 2, of any shape: arXiv:2502.14786), Zhai et al. 2022
(LiT: the text tower learns the space of a pretrained image tower)."""


def _coca(image: str, width: int, heads: int) -> Row:
    return {
        "image_tower": image_row(image, **CLIP_IMAGE, final_norm=False),
        "text_tower": text_row(width, heads, length=76, pool="cls", **CLIP_TEXT),
        "decoder": {"heads": heads, "mlp_dim": 4 * width, "norm_epsilon": 1e-5},
        "embed_dim": width,
    }


COCA: dict[str, Row] = {"coca_vit_b32": _coca("vit_b32", 512, 8), "coca_vit_l14": _coca("vit_l14", 768, 12)}
"""Of ``CoCa``, the sizes of open_clip."""

TIMM_SIZES = {"ti": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant", "G": "gigantic"}
TIMM_PIXELS = (224, 384, 448, 512, 518)
"""Sides of the image that timm's names end in; the models are the same but for their number of positions."""
HYBRIDS = {
    "vit_r_ti16": ("R+ViT-Ti/16", "vit_tiny_r_s16_p8"),
    "vit_r26_s32": ("R26+ViT-S/32", "vit_small_r26_s32"),
    "vit_r26_b32": ("R26+ViT-B/32", "vit_base_r26_s32"),
    "vit_r50_b16": ("R50+ViT-B/16", "vit_base_r50_s16"),
    "vit_r50_l32": ("R50+ViT-L/32", "vit_large_r50_s32"),
}
"""Our name -> the original repository's and timm's."""


def _image_aliases() -> dict[str, str]:
    out: dict[str, str] = {}
    names = dict(HYBRIDS)
    for size, patches in VIT_PATCHES.items():
        original, theirs = size if size in "gG" else size.capitalize(), TIMM_SIZES.get(size, size)
        names |= {f"vit_{size}{p}": (f"ViT-{original}/{p}", f"vit_{theirs}_patch{p}") for p in patches}
    for name, (original, theirs) in names.items():
        for form in (original, original.replace("ViT-", "")):
            flat = form.replace("/", "_")
            out |= {form: name, flat: name, flat.replace("+", "_"): name}
        out |= {f"{theirs}_{pixels}": name for pixels in TIMM_PIXELS}
    for name in MIXER:
        size, patch = name[6], name[7:]
        out |= {f"Mixer-{size.upper()}{sep}{patch}": name for sep in "/_"} | {f"mixer_{size}{patch}_224": name}
    return out


TIMM: dict[str, str] = {
    **{f"deit_{TIMM_SIZES[size]}_distilled_patch16_224": f"deit_{size}16_distilled" for size in ("ti", "s", "b")},
    **{f"vit_{TIMM_SIZES[size]}_patch14_dinov2": f"dinov2_vit{size}14" for size in "sblg"},
    **{f"vit_{TIMM_SIZES[size]}_patch14_reg4_dinov2": f"dinov2_vit{size}14_reg" for size in "sblg"},
    **{f"vit_{TIMM_SIZES[size]}_patch16_dinov3": f"dinov3_vit{size}16" for size in "sbl"},
    **{f"vit_{TIMM_SIZES[size]}_plus_patch16_dinov3": f"dinov3_vit{size}16plus" for size in "sh"},
    "vit_7b_patch16_dinov3": "dinov3_vit7b16",
    **{f"eva02_{TIMM_SIZES[size]}_patch14_224": f"eva02_{size}14" for size in ("ti", "s", "b", "l")},
    **{f"naflexvit_{TIMM_SIZES.get(size, size)}_patch16_siglip": f"naflexvit_{size}16" for size in ("b", "so400m")},
    **{f"flexivit_{TIMM_SIZES[size]}": f"vit_{size}16" for size in "sbl"},
}
"""timm's names of :data:`MODERN`, and of FlexiViT (Beyer et al. 2023), whose patches alone it resizes, -> ours."""

IMAGE_ALIASES: dict[str, str] = _image_aliases() | TIMM
"""Names of the original repository (``ViT-B_16``, ``B/16``, ``R50+ViT-L_32``) and of timm -> our names."""

OPEN_CLIP = {
    "ViT-B-32": "clip_vit_b32",
    "ViT-B-16": "clip_vit_b16",
    "ViT-L-14": "clip_vit_l14",
    "ViT-H-14": "clip_vit_h14",
    "ViT-g-14": "clip_vit_g14",
    "ViT-bigG-14": "clip_vit_G14",
    "ViT-B-16-SigLIP": "siglip_vit_b16",
    "ViT-L-16-SigLIP-256": "siglip_vit_l16",
    "ViT-SO400M-14-SigLIP": "siglip_vit_so400m14",
    "coca_ViT-B-32": "coca_vit_b32",
    "coca_ViT-L-14": "coca_vit_l14",
}
"""Names of open_clip -> our names."""

ALIASES: dict[str, str] = IMAGE_ALIASES | OPEN_CLIP
"""Every name of others -> ours."""


TABLES = (VIT, MODERN, MIXER, MONARCH_MIXER, VIM, CONVNEXT, HORNET, NF_RESNET, MOBILENET, TWO_TOWER, COCA)
NAMES = tuple(name for table in TABLES for name in table)
"""Ours, in the order of the tables."""


def names(pattern: str = "*") -> list[str]:
    """Those of :data:`NAMES` that ``pattern`` (``"vit_*"``) matches."""
    return [name for name in NAMES if fnmatch.fnmatchcase(name, pattern)]


def aliases(name: str) -> list[str]:
    """What others call the model ``name``, of several spellings of a name the first."""
    found = [alias for alias, own in ALIASES.items() if own == name]
    return [x for x in found if x in OPEN_CLIP or x in TIMM or x.endswith("_224") or ("/" in x and "-" in x)]
