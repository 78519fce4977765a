"""``config.json`` of Hugging Face transformers <-> the fields of our ViT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vit_jax.convert.fields import heads_of, shape
from vit_jax.convert.hf.vit_rules import HEAD, PATCHES, POOLER, REGISTERS, Layout
from vit_jax.io.tensors import Tensors
from vit_jax.models import ViT
from vit_jax.types import UserError

FILE = "config.json"
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu",
}  # fmt: skip
"""``hidden_act`` -> ours; the first of equals is written."""
EPSILON = {"vit": 1e-12, "dinov2": 1e-6, "dinov2_with_registers": 1e-6}
"""``layer_norm_eps`` where it is not said."""
CLASSES = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}
"""What ``architectures`` starts with."""


def fields(theirs: Tensors, layout: Layout, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The model of these tensors as plain data, and one note for each thing that is assumed.

    Args:
      theirs: tensors, for their shapes.
      layout: of the file.
      settings: content of ``config.json``, {} where there is none.

    Raises:
      UserError: a setting that our model lacks; a missing tensor or one with an invalid shape.
    """
    prefix, blocks = layout.prefix, layout.prefix + layout.names.blocks
    width, channels, *patch = shape(theirs, prefix + PATCHES, 4)
    if channels != 3 or patch[0] != patch[1]:
        raise UserError(
            f"the patches are of {patch} px and {channels} channels; only square RGB patches are converted."
        )
    depth = len({found[1] for name in theirs if (found := re.match(rf"{re.escape(blocks)}\.(\d+)\.", name))})
    mlp_dim = shape(theirs, f"{blocks}.0.{layout.names.mlp[0]}.weight", 2)[0]
    guess, note = heads_of(width, depth, mlp_dim)
    notes = [note] if note and "num_attention_heads" not in settings else []
    epsilon, act = settings.get("layer_norm_eps", EPSILON[layout.family]), settings.get("hidden_act", "gelu")
    if not settings:
        notes.append(f"no {FILE}: {act} and layer norms with epsilon {epsilon:g} are assumed, transformers' defaults")
    if act not in ACTIVATIONS:
        raise UserError(f"hidden_act={act!r} is no activation here; allowed: {', '.join(ACTIVATIONS)}.")
    pooled = f"{prefix}{POOLER}.weight" in theirs and not layout.headed
    if pooled and settings.get("pooler_act", "tanh") != "tanh":
        raise UserError(f"pooler_act={settings['pooler_act']!r} is not what poolers end in here, tanh.")
    if not layout.bias:
        notes.append("queries, keys and values have no biases there and biases of 0 here")
    return {
        "name": "vit",
        "num_classes": shape(theirs, f"{HEAD}.weight", 2)[0] if f"{HEAD}.weight" in theirs else 0,
        "patch": patch[0],
        "width": width,
        "depth": depth,
        "heads": settings.get("num_attention_heads", guess),
        "mlp_dim": mlp_dim,
        "pool": "cls_gap" if layout.dino and layout.headed else "cls",
        "positions": "learn",
        "registers": shape(theirs, prefix + REGISTERS, 3)[1] if prefix + REGISTERS in theirs else 0,
        "pre_logits": shape(theirs, f"{prefix}{POOLER}.weight", 2)[0] if pooled else None,
        "layer_scale": settings.get("layerscale_value", 1.0) if layout.dino else None,
        "activation": ACTIVATIONS[act],
        "norm_epsilon": epsilon,
    }, notes


def class_names(id2label: Any, num_classes: int) -> tuple[tuple[str, ...], list[str]]:
    """The classes' names in order, numbers for placeholders; () where there are none, a note where they don't fit."""
    if not num_classes or not id2label:
        return (), []
    named = {str(key): str(name) for key, name in id2label.items()}
    if set(named) != set(map(str, range(num_classes))):
        return (), [f"{FILE} names {len(named)} classes, the classifier has {num_classes}"]
    return tuple(re.sub(r"^LABEL_(?=\d+$)", "", named[str(i)]) for i in range(num_classes)), []


def check(model: ViT) -> ViT:
    """``model``, where one of transformers' models is the same.

    Raises:
      UserError: none is; it names the format that can say it.
    """
    dino, pooled = needs_dino(model), model.pre_logits is not None
    refused = {
        "a convolutional stem; use --to timm": model.stem is not None,
        "a norm before the first block; use --to vit_jax": model.pre_norm,
        "an encoder without a norm after it; use --to vit_jax": not model.final_norm,
        "patches without a bias; use --to vit_jax": not model.patch_bias,
        f"pool={model.pool!r}; use --to timm": model.pool not in ("cls", "cls_gap"),
        "pre-logits before a head; use --to npz": pooled and model.num_classes > 0,
        "pre-logits beside registers, layer scale or pool='cls_gap'; use --to vit_jax": pooled and dino,
        "registers or layer scale and a head on the cls token alone; use --to timm": (
            dino and model.pool == "cls" and model.num_classes > 0
        ),
        f"registers, layer scale or pool='cls_gap' and MLPs of {model.mlp_dim}, no multiple of the width; "
        f"use --to {'vit_jax' if model.pool == 'cls_gap' else 'timm'}": dino and model.mlp_dim % model.width != 0,
    }
    if found := [what for what, there in refused.items() if there]:
        raise UserError(f"transformers has no ViT with {found[0]}.")
    return model


def needs_dino(model: ViT) -> bool:
    """Whether a DINOv2 has what ``model`` is made of, but no ViT."""
    return bool(model.registers) or model.layer_scale is not None or model.pool == "cls_gap"


def content(
    model: ViT, layout: Layout, image_size: int, names: tuple[str, ...], output_activation: str
) -> dict[str, Any]:
    """What ``config.json`` says of ``model``; ``names`` are those of the classes."""
    config: dict[str, Any] = {
        "architectures": [CLASSES[layout.family] + ("ForImageClassification" if layout.headed else "Model")],
        "model_type": layout.family,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == model.activation),
        "layer_norm_eps": model.norm_epsilon,
        "image_size": image_size,
        "patch_size": model.patch,
        "num_channels": 3,
        "qkv_bias": layout.bias,
    }
    if layout.dino:
        config |= {"mlp_ratio": model.mlp_dim // model.width, "use_swiglu_ffn": False}
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
