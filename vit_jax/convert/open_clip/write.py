"""Our image-text models -> ``open_clip_config.json``, and what open_clip cannot express."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vit_jax import models
from vit_jax.convert.format import Limit
from vit_jax.convert.open_clip.config import EPSILON, FILE, OWN, RESIZE_MODES, ROUNDING, TEMPERATURE
from vit_jax.convert.open_clip.rules import Layout
from vit_jax.convert.preprocess import Preprocess, said
from vit_jax.convert.timm import rules as timm_rules
from vit_jax.convert.timm.config import ratio
from vit_jax.models import CoCa, TextTransformer, TwoTower, ViT
from vit_jax.models.coca import TextDecoder
from vit_jax.types import UserError

NATIVE: dict[str, Any] = {
    "pool": "cls", "patch_bias": False, "positions": "learn", "registers": 0, "stem": None, "pre_logits": None,
    "cls_token": False, "pool_norm": False,
}  # fmt: skip
"""Fields of an image tower of open_clip's own, which leaves no choice of them."""
FREE = ("dtype", "scan", "remat", "saved", "attention", "dropout", "drop_path", "head_bias_init")
"""Fields that do not decide whether a tower is one of timm's."""


def _siglip(row: str, sizes: tuple[int, ...], **fields: Any) -> dict[int, dict[str, Any]]:
    return {size: {"name": row, "pool": "map", **fields} for size in sizes}


TRUNKS: dict[str, tuple[int, dict[str, Any]]] = {
    f"{name}_{size}": (size, fields)
    for name, by_size in {
        "vit_base_patch16_siglip": _siglip("vit_b16", (224, 256, 384, 512)),
        "vit_base_patch32_siglip": _siglip("vit_b32", (256,), activation="gelu_tanh"),
        "vit_large_patch16_siglip": _siglip("vit_l16", (256, 384))
        | _siglip("vit_l16", (512,), activation="gelu_tanh"),
        "vit_so400m_patch14_siglip": _siglip("vit_so400m14", (224, 378, 384)),
        "vit_so400m_patch16_siglip": _siglip("vit_so400m16", (256, 384, 512), activation="gelu_tanh"),
        **{
            f"vit_{theirs}_patch{patch}": {size: {"name": f"vit_{ours}{patch}"} for size in (224, 384)}
            for theirs, ours, patches in (("tiny", "ti", (16,)), ("small", "s", (16, 32)), ("base", "b", (16, 32)),
                                          ("large", "l", (16, 32)))
            for patch in patches
        },
    }.items()
    for size, fields in by_size.items()
}  # fmt: skip
"""Architectures of timm's that open_clip can be told of by name -> side of their images, and what they are here."""


def _plain(model: CoCa) -> bool:
    image = model.image_tower
    plain = isinstance(image, ViT) and not image.patch_bias and image.norm_epsilon == EPSILON
    return plain and model.image_head == "linear"


_LACKS = "open_clip's models have no {what}; write --to vit_jax."
_NO_ACTIVATION = "open_clip has no activation={0.activation!r}; it has gelu, gelu_tanh and quick_gelu."
LIMITS = (
    Limit(TextTransformer, "pool", ("end", "first", "last", "cls"), _LACKS, "text tower with pool={0.pool!r}"),
    Limit(CoCa, "", _plain, _LACKS,
          "captioner but on a ViT with patch_bias=False, norm_epsilon=1e-5 and image_head='linear'"),
    Limit(CoCa, "text_tower.pool", ("cls",), _LACKS, "captioner with text_tower.pool={0.text_tower.pool!r}"),
    Limit(CoCa, "pooling", ("shared",), _LACKS, "captioner with pooling={0.pooling!r}"),
    Limit(TextDecoder, "split", (True,), _LACKS, "caption decoder with one MLP a block (split=False)"),
    Limit(CoCa, "", lambda m: m.embed_dim == m.text_tower.width, _LACKS,
          "captioner whose embedding ({0.embed_dim}) is not as wide as its texts ({0.text_tower.width})"),
    Limit(CoCa, "", lambda m: (m.decoder.mlp_dim, m.decoder.norm_epsilon) == (4 * m.text_tower.width, EPSILON), _LACKS,
          "caption decoder with mlp_dim={0.decoder.mlp_dim}, norm_epsilon={0.decoder.norm_epsilon:g}"),
    Limit(ViT, "activation", ("gelu", "gelu_tanh", "quick_gelu"), _NO_ACTIVATION),
    Limit(TextTransformer, "activation", ("gelu", "gelu_tanh", "quick_gelu"), _NO_ACTIVATION),
    Limit(TextDecoder, "activation", ("gelu", "quick_gelu"),
          "open_clip's caption decoders have no {0.activation}; write --to vit_jax."),
)  # fmt: skip
"""What open_clip's models have not, whatever the size of their images."""


def write(model: TwoTower, preprocess: Preprocess, text: Mapping[str, Any]) -> tuple[dict[str, Any], Layout, list[str]]:
    """The content of the file, how the weights are stored, and what open_clip does otherwise.

    Args:
      model: what to write.
      preprocess: of its images.
      text: what ``text_cfg`` says of its tokenizer.

    Raises:
      UserError: open_clip has no such image tower for images of this size, or one activation for all towers.
    """
    shown, unsaid = said(
        preprocess, "open_clip", ROUNDING, modes=RESIZE_MODES.values(), filters=("bicubic", "bilinear")
    )
    vision, layout = _vision(model, shown.size + shown.frame.rest)
    quick = _quick_gelu(model, layout)
    plain = model.text_tower.pool == "end" and model.text_head == "linear" and model.text_tower.causal
    custom = isinstance(model, CoCa) or layout.trunk is not None or not plain
    layout = dataclasses.replace(layout, text="text." if custom else "")
    config: dict[str, Any] = {"embed_dim": model.embed_dim, "vision_cfg": vision, "text_cfg": {**_text(model), **text}}
    config |= {"custom_text": True} if custom else {}
    config |= {"quick_gelu": True} if quick else {}
    config |= {} if model.temperature == TEMPERATURE else {"init_logit_scale": math.log(model.temperature)}
    config |= {} if model.bias is None else {"init_logit_bias": model.bias}
    notes, own = unsaid, {}
    if isinstance(model, CoCa):
        config["multimodal_cfg"] = _multimodal(model)
    if model.text_tower.pool == "cls" and model.text_tower.cls_mask == "text":
        own = {OWN: {"correct_cls_mask": True}}
        notes.append(f"{FILE} cannot say that cls sees the text alone: after loading set model.text.correct_cls_mask")
    if shown.crop != 1.0:
        notes.append(f"open_clip cannot say that {shown.crop:g} of the image is kept; it resizes the whole of it")
    images = {
        "mean": list(shown.mean),
        "std": list(shown.std),
        "interpolation": shown.interpolation,
        "resize_mode": next(theirs for theirs, ours in RESIZE_MODES.items() if ours == shown.frame.mode),
        **({"fill_color": list(shown.frame.fill)} if any(shown.frame.fill) and shown.frame.mode == "pad" else {}),
    }
    return {"model_cfg": config, "preprocess_cfg": images, **own}, layout, notes


def _quick_gelu(model: TwoTower, layout: Layout) -> bool:
    """Whether OpenAI's activation is switched on, for all towers of open_clip's own.

    Raises:
      UserError: they differ in that.
    """
    towers: list[Any] = [model.text_tower] + ([] if layout.trunk else [model.image_tower])
    towers += [model.decoder] if isinstance(model, CoCa) else []
    quick = [tower.activation == "quick_gelu" for tower in towers]
    if any(quick) != all(quick):
        raise UserError("open_clip's towers have quick_gelu all or none; write --to vit_jax.")
    return all(quick)


def _numerics(tower: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"mlp_ratio": ratio(tower.mlp_dim, tower.width)}
    out |= {} if tower.layer_scale is None else {"ls_init_value": tower.layer_scale or 1e-5}
    out |= {} if tower.norm_epsilon == EPSILON else {"norm_kwargs": {"eps": tower.norm_epsilon}}
    return out | ({"act_kwargs": {"approximate": "tanh"}} if tower.activation == "gelu_tanh" else {})


def _vision(model: TwoTower, size: int) -> tuple[dict[str, Any], Layout]:
    """``vision_cfg`` of a tower of open_clip's own, else of timm's."""
    tower = model.image_tower
    captions = isinstance(model, CoCa)
    norm = {"final_norm": not captions}
    native = isinstance(tower, ViT) and all(getattr(tower, k) == v for k, v in (NATIVE | norm).items())
    if not native or model.image_head != "linear":
        return _trunk(model, size)
    vision = {
        "image_size": size,
        "layers": tower.depth,
        "width": tower.width,
        "head_width": tower.width // tower.heads,
        "patch_size": tower.patch,
        **_numerics(tower),
    }
    vision |= {} if tower.pre_norm else {"no_ln_pre": True}
    if captions:
        pooler = {"attn_pooler_queries": model.queries, "attn_pooler_heads": model.pool_heads}
        vision |= {"attentional_pool": True, **pooler, "output_tokens": True}
    return vision, Layout()


def _trunk(model: TwoTower, size: int) -> tuple[dict[str, Any], Layout]:
    tower = model.image_tower
    known = {name: models.create(**fields, num_classes=0) for name, (side, fields) in TRUNKS.items() if side == size}
    name = next((name for name, ours in known.items() if _alike(tower, ours)), None)
    if name is None:
        raise UserError(
            "open_clip has no such image tower: its own have a class token, no patch_bias and a linear image_head, "
            f"others are architectures of timm's for one size of images ({', '.join(list(TRUNKS)[:3])}, ...), none of "
            f"which is this one for {size} px; write --to vit_jax."
        )
    pool = {"cls": "token", "map": "map"}[tower.pool]
    vision = {"image_size": size, "timm_model_name": name, "timm_model_pretrained": False, "timm_pool": pool}
    vision["timm_proj"] = "none" if model.image_head == "none" else "linear"
    vision |= {"timm_proj_bias": True} if model.image_head == "biased" else {}
    return vision, Layout(trunk=timm_rules.Layout(prefix=1 if tower.pool == "cls" else 0))


def _alike(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a.clone(**{field: getattr(b, field) for field in FREE if hasattr(b, field)}) == b


def _text(model: TwoTower) -> dict[str, Any]:
    tower = model.text_tower
    out: dict[str, Any] = {
        "context_length": tower.length,
        "vocab_size": tower.vocab_size,
        "width": tower.width,
        "heads": tower.heads,
        "layers": tower.depth,
        **_numerics(tower),
    }
    out |= {} if tower.causal else {"no_causal_mask": True}
    if tower.pool == "cls":
        out["embed_cls"] = True
    elif tower.pool != "end":
        out["pool_type"] = tower.pool
    elif tower.end_id != tower.vocab_size - 1:
        out |= {"pool_type": "eos", "eos_id": tower.end_id}
    out |= {"proj_bias": True} if model.text_head == "biased" else {}
    out |= {"proj_type": "none"} if model.text_head == "none" else {}
    return out | ({"output_tokens": True} if isinstance(model, CoCa) else {})


def _multimodal(model: CoCa) -> dict[str, Any]:
    text = model.text_tower
    sizes = {"context_length": text.length, "vocab_size": text.vocab_size, "width": text.width}
    return {**sizes, "heads": model.decoder.heads, "layers": model.decoder.depth}
