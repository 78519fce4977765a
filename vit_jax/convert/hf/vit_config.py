"""``config.json`` of Hugging Face transformers <-> the fields of our ViT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vit_jax.convert.fields import depth, heads_of, shape
from vit_jax.convert.format import Limit
from vit_jax.convert.hf.vit_rules import HEAD, HEADS, PATCHES, POOLER, REGISTERS, Layout
from vit_jax.io.tensors import Tensors
from vit_jax.layers.gated import Gated
from vit_jax.models import ViT
from vit_jax.types import UserError

FILE = "config.json"
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu", "swish": "silu",
}  # fmt: skip
"""``hidden_act`` -> ours; the first of equals is written."""
EPSILON = {"vit": 1e-12, "vit_mae": 1e-12, "deit": 1e-12, "dinov2": 1e-6, "dinov2_with_registers": 1e-6}
"""``layer_norm_eps`` where it is not said."""
CLASSES = {
    "vit": "ViT", "vit_mae": "ViTMAE", "deit": "DeiT", "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
}  # fmt: skip
"""What ``architectures`` starts with."""


def fields(
    theirs: Tensors, layout: Layout, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """The model of these tensors as plain data, one note for each thing that is assumed, those of fields by themselves.

    Args:
      theirs: tensors, for their shapes.
      layout: of the file.
      settings: content of ``config.json``, {} where there is none.

    Raises:
      UserError: a setting that our model lacks; a missing tensor or one with an invalid shape.
    """
    prefix = layout.prefix
    width, patch = rgb_patches(theirs, prefix + PATCHES)
    blocks = depth(theirs, re.escape(layout.blocks))
    mlp_dim = shape(theirs, f"{layout.blocks}0.{layout.names.mlp[0]}.weight", 2)[0]
    mlp_dim //= 2 if layout.gated and not layout.names.gate else 1
    guess, note = heads_of(width, blocks, mlp_dim)
    notes, assumed = [], {} if "num_attention_heads" in settings else {"heads": note}
    epsilon, act = settings.get("layer_norm_eps", EPSILON[layout.family]), settings.get("hidden_act", "gelu")
    if not settings:
        rest = f"no {FILE}: {act} and layer norms with epsilon {epsilon:g} are assumed, transformers' defaults"
        assumed |= {"activation": rest, "norm_epsilon": rest}
    activation = "silu" if layout.gated else activation_of(act)
    pooled = f"{prefix}{POOLER}.weight" in theirs and not layout.headed and layout.family != "deit"
    if pooled and settings.get("pooler_act", "tanh") != "tanh":
        raise UserError(f"pooler_act={settings['pooler_act']!r} is not what poolers end in here, tanh.")
    if not layout.bias:
        notes.append("queries, keys and values have no biases there and biases of 0 here")
    if layout.family == "deit" and not layout.headed:
        notes.append("its features are the mean of both class tokens, as its two classifiers see them")
    head = next((f"{name}.weight" for name in (HEAD, HEADS[0]) if f"{name}.weight" in theirs), None)
    found = {
        "name": "vit",
        "num_classes": 0 if head is None else shape(theirs, head, 2)[0],
        "patch": patch,
        "width": width,
        "depth": blocks,
        "heads": settings.get("num_attention_heads", guess),
        "mlp_dim": mlp_dim,
        "pool": "cls_gap" if layout.dino and layout.headed else "cls",
        "positions": "learn",
        "registers": shape(theirs, prefix + REGISTERS, 3)[1] if prefix + REGISTERS in theirs else 0,
        "pre_logits": shape(theirs, f"{prefix}{POOLER}.weight", 2)[0] if pooled else None,
        "layer_scale": settings.get("layerscale_value", 1.0) if layout.dino else None,
        "activation": activation,
        "norm_epsilon": epsilon,
        "distilled": layout.family == "deit",
        "ffn": "gated" if layout.gated else None,
    }
    return found, notes, assumed


def rgb_patches(theirs: Tensors, name: str) -> tuple[int, int]:
    """Width and patch size that the weight of the patches tells.

    Raises:
      UserError: it is missing, or of other patches.
    """
    width, channels, *patch = shape(theirs, name, 4)
    if channels != 3 or patch[0] != patch[1]:
        raise UserError(
            f"the patches are of {patch} px and {channels} channels; only square RGB patches are converted."
        )
    return width, patch[0]


def activation_of(act: str) -> str:
    """Ours for ``hidden_act``.

    Raises:
      UserError: we have none like it.
    """
    if act not in ACTIVATIONS:
        raise UserError(f"hidden_act={act!r} is no activation here; allowed: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[act]


def sizes(tower: Any) -> dict[str, Any]:
    """The settings that all of transformers' Transformers have."""
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == tower.activation),
        "layer_norm_eps": tower.norm_epsilon,
    }


def class_names(id2label: Any, num_classes: int) -> tuple[tuple[str, ...], list[str]]:
    """The classes' names in order, numbers for placeholders; () where there are none, a note where they don't fit."""
    if not num_classes or not id2label:
        return (), []
    named = {str(key): str(name) for key, name in id2label.items()}
    if set(named) != set(map(str, range(num_classes))):
        return (), [f"{FILE} names {len(named)} classes, the classifier has {num_classes}"]
    return tuple(re.sub(r"^LABEL_(?=\d+$)", "", named[str(i)]) for i in range(num_classes)), []


def needs_dino(model: ViT) -> bool:
    """Whether a DINOv2 has what ``model`` is made of, but no ViT."""
    gated = model.ffn is not None
    return bool(model.registers) or model.layer_scale is not None or model.pool == "cls_gap" or gated


def swiglu_ratio(model: ViT) -> int | None:
    """``mlp_ratio`` for which DINOv2's hidden layer, two thirds rounded up to 8, is the model's; None for none."""
    hidden = model.ffn.hidden(model.mlp_dim) if isinstance(model.ffn, Gated) else 0
    return next((n for n in range(1, 65) if -(-int(model.width * n * 2 / 3) // 8) * 8 == hidden), None)


_ODD = "registers, layer scale or pool='cls_gap' and MLPs of {0.mlp_dim}, no multiple of the width; use --to "
LIMITS = tuple(
    Limit(ViT, field, allowed, f"transformers has no ViT with {what}.")
    for field, allowed, what in (
        ("stem", (None,), "a convolutional stem; use --to timm"),
        ("pre_norm", (False,), "a norm before the first block (pre_norm); use --to vit_jax"),
        ("final_norm", (True,), "an encoder without a norm after it (final_norm); use --to vit_jax"),
        ("pool_norm", (False,), "a norm after pooling (pool_norm); use --to timm"),
        ("patch_bias", (True,), "patches without a bias (patch_bias); use --to vit_jax"),
        ("pool", ("cls", "cls_gap"), "pool={0.pool!r}; use --to timm"),
        ("", lambda m: not (m.pre_logits and m.num_classes), "pre-logits before a head; use --to npz"),
        ("", lambda m: not (m.pre_logits and needs_dino(m)),
         "pre-logits beside registers, layer scale or pool='cls_gap'; use --to vit_jax"),
        ("", lambda m: not (needs_dino(m) and m.pool == "cls" and m.num_classes),
         "registers or layer scale and a head on the cls token alone; use --to timm"),
        ("", lambda m: not m.ffn or (m.ffn.norm_epsilon is None and m.activation == "silu" and bool(swiglu_ratio(m))),
         "gated MLPs but DINOv2's: silu, no norm, two thirds of a multiple of the width; use --to timm"),
        ("", lambda m: not (m.distilled and (needs_dino(m) or m.pre_logits)),
         "a distillation token beside registers, layer scale, gated MLPs or pre-logits; use --to vit_jax"),
        ("", lambda m: m.ffn is not None or not (needs_dino(m) and m.pool == "cls" and m.mlp_dim % m.width),
         _ODD + "timm"),
        ("", lambda m: m.ffn is not None or not (needs_dino(m) and m.mlp_dim % m.width), _ODD + "vit_jax"),
    )
)  # fmt: skip
"""What none of transformers' image models is."""


def class_of(layout: Layout) -> str:
    """The name of transformers' class for a file with this layout."""
    teacher = "WithTeacher" if layout.family == "deit" else ""
    return CLASSES[layout.family] + (f"ForImageClassification{teacher}" if layout.headed else "Model")


def content(
    model: ViT, layout: Layout, image_size: int, names: tuple[str, ...], output_activation: str
) -> dict[str, Any]:
    """What ``config.json`` says of ``model``; ``names`` are those of the classes."""
    config: dict[str, Any] = {
        "architectures": [class_of(layout)],
        "model_type": layout.family,
        **sizes(model),
        "image_size": image_size,
        "patch_size": model.patch,
        "num_channels": 3,
        "qkv_bias": layout.bias,
    }
    if layout.dino:
        swiglu = swiglu_ratio(model)
        config |= {"mlp_ratio": swiglu or model.mlp_dim // model.width, "use_swiglu_ffn": swiglu is not None}
        config["layerscale_value"] = 1.0 if model.layer_scale is None else model.layer_scale
    else:
        config |= {"intermediate_size": model.mlp_dim, "pooler_output_size": model.pre_logits or model.width}
        config["pooler_act"] = "tanh"
    if model.registers:
        config["num_register_tokens"] = model.registers
    if layout.headed:
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in reversed(list(enumerate(names)))}  # of equal names the first
    if output_activation == "sigmoid":
        config["problem_type"] = "multi_label_classification"
    return config
