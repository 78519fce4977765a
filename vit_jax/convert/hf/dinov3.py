"""The DINOv3 ViTs of Hugging Face transformers: rotary positions, keys without a bias, gated MLPs in some sizes.

Bare models, which give the normalised cls token. Files call blocks ``layer.0``, transformers 5 in memory
``model.layer.0``: both are read, the former written.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from vit_jax.convert.fields import depth, heads_of, shape
from vit_jax.convert.format import Codec, Limit, Reading, Writing, check_limits
from vit_jax.convert.hf import processor
from vit_jax.convert.hf.vit_config import FILE, activation_of, rgb_patches, sizes
from vit_jax.convert.hf.vit_peer import images, instantiate
from vit_jax.convert.peer import torch_peer
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import Block, Rule, rule, torch_blocks, torch_norm
from vit_jax.convert.transforms import CONV
from vit_jax.io.extras import needed
from vit_jax.io.sidecar import About, beside
from vit_jax.io.tensors import Tensor, Tensors, open_tensors
from vit_jax.layers.gated import Gated
from vit_jax.layers.rotary import Rope
from vit_jax.models import ViT

FAMILY = "dinov3_vit"
PATCHES, CLS, REGISTERS, MASK = (
    f"embeddings.{name}" for name in ("patch_embeddings.weight", "cls_token", "register_tokens", "mask_token")
)
STARTS = ("layer.", "model.layer.")
"""What precedes the number of a block: in files, in memory."""
BLOCK = Block(
    ("attention.q_proj.{}", "attention.k_proj.{}", "attention.v_proj.{}"), "attention.o_proj",
    ("mlp.up_proj", "mlp.down_proj"), ("norm1", "norm2"), ("layer_scale1.lambda1", "layer_scale2.lambda1"),
    biases=("attention.q_proj.bias", "attention.v_proj.bias"), gate="mlp.gate_proj",
)  # fmt: skip
BASE, EPSILON = 100.0, 1e-5
"""``rope_theta`` and ``layer_norm_eps`` where they are not said."""
LIMITS = tuple(
    Limit(ViT, field, allowed, f"transformers' DINOv3 has no {what}; write --to vit_jax.")
    for field, allowed, what in (
        ("num_classes", (0,), "classifier"),
        ("pool", ("cls",), "pool={0.pool!r}"),
        ("positions", ("none",), "positions={0.positions!r} beside rotary ones"),
        ("rotary", lambda r: (r.layout, r.grid, r.axes) == ("half", "unit", "yx"),
         "rotary={0.rotary}"),
        ("ffn", lambda ffn: ffn is None or ffn.norm_epsilon is None, "ffn={0.ffn}"),
        ("", lambda m: m.stem is None and m.pre_logits is None and m.qk_norm is None and not m.distilled,
         "stem, layer before the head, norm of queries or distillation token"),
        ("", lambda m: m.final_norm and m.patch_bias and not (m.pre_norm or m.pool_norm), "such norms or patches"),
    )
)  # fmt: skip
"""What transformers' DINOv3 is not."""


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are of a DINOv3 ViT."""
    return PATCHES in names and REGISTERS in names


def read(theirs: Tensors, about: About) -> Reading:
    """The model behind the tensors; see :class:`vit_jax.convert.format.Codec`.

    Raises:
      UserError: a setting that is not ours, a tensor that is missing.
    """
    settings: Mapping[str, Any] = about.get(FILE) or {}
    start = next((s for s in STARTS if any(name.startswith(s) for name in theirs)), STARTS[0])
    first, notes = f"{start}0.", []
    width, patch = rgb_patches(theirs, PATCHES)
    blocks, mlp_dim = depth(theirs, start.replace(".", r"\.")), shape(theirs, f"{first}mlp.up_proj.weight", 2)[0]
    heads, note = heads_of(width, blocks, mlp_dim)
    gated = f"{first}mlp.gate_proj.weight" in theirs
    act = settings.get("hidden_act", "silu" if gated else "gelu")
    assumed = {} if settings else {"heads": note}
    if not settings:
        notes.append(f"no {FILE}: {act}, rope_theta {BASE:g} and norm epsilon {EPSILON:g} are assumed, as published")
    biased = [part for part in "qkv" if f"{first}attention.{part}_proj.bias" in theirs]
    size = settings.get("image_size", 224)
    preprocess, more = processor.read(about.get(processor.FILE), FAMILY, size // patch * patch, patch)
    model = {
        "name": "vit", "num_classes": 0, "patch": patch, "width": width, "depth": blocks, "mlp_dim": mlp_dim,
        "heads": settings.get("num_attention_heads", heads), "pool": "cls", "positions": "none",
        "rotary": {"name": "rope", "base": settings.get("rope_theta", BASE)}, "ffn": "gated" if gated else None,
        "qkv_bias": {"": "none", "qv": "qv"}.get("".join(biased), "qkv"), "activation": activation_of(act),
        "registers": shape(theirs, REGISTERS, 3)[1], "layer_scale": settings.get("layerscale_value", 1.0),
        "norm_epsilon": settings.get("layer_norm_eps", EPSILON),
    }  # fmt: skip
    unused = {MASK: "only training on masked images uses it"}
    unused |= {} if model["registers"] else {REGISTERS: "it has no registers"}
    unused |= {name: "positions are computed" for name in theirs if name.startswith("rope_embeddings.")}
    return Reading(model, preprocess, layout=start, unused=unused, notes=(*notes, *more), assumed=assumed)


def rules(model: Any, start: str) -> list[Rule]:
    """Every tensor of a file whose blocks are called ``start``, and the parameters of ``model`` that it holds."""
    return [
        rule(CLS, "cls"),
        *([rule(REGISTERS, "registers")] if model.registers else []),
        rule(PATCHES, "patch/kernel", CONV),
        rule(f"{PATCHES.removesuffix('weight')}bias", "patch/bias"),
        *torch_blocks(start, "encoder/block_", model, BLOCK),
        *torch_norm("norm", "encoder/norm"),
    ]


def content(model: Any, size: int) -> dict[str, Any]:
    """What ``config.json`` says of ``model`` for images of ``size`` pixels."""
    biases = {name: part in model.qkv_bias for name, part in (("query", "q"), ("key", "k"), ("value", "v"))}
    return {
        "architectures": ["DINOv3ViTModel"],
        "model_type": FAMILY,
        **sizes(model),
        **{f"{name}_bias": said and model.qkv_bias != "none" for name, said in biases.items()},
        "intermediate_size": model.ffn.hidden(model.mlp_dim) if model.ffn else model.mlp_dim,
        "use_gated_mlp": model.ffn is not None,
        "rope_theta": model.rotary.base,
        "image_size": size,
        "patch_size": model.patch,
        "num_channels": 3,
        "num_register_tokens": model.registers,
        "layerscale_value": 1.0 if model.layer_scale is None else model.layer_scale,
    }


def write(pretrained: Stored) -> Writing:
    """A folder for ``AutoModel.from_pretrained``."""
    model: Any = pretrained.model
    shown, notes = processor.write(pretrained.preprocess)
    extra = {MASK: Tensor.of(np.zeros((1, 1, model.width), np.float32))}
    if not model.registers:
        extra[REGISTERS] = Tensor.of(np.zeros((1, 0, model.width), np.float32))
    if model.layer_scale is None:
        ones = Tensor.of(np.ones(model.width, np.float32))
        extra |= {f"{STARTS[0]}{i}.{name}": ones for i in range(model.depth) for name in BLOCK.scales}
        notes = [*notes, "the model has no layer scale, DINOv3 has: ones are written"]
    config = content(model, pretrained.preprocess.size + pretrained.preprocess.frame.rest)
    return Writing(STARTS[0], {FILE: config, processor.FILE: shown}, tuple(notes), extra)


def peer(path: pathlib.Path, model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """transformers' model with the weights at ``path``; see :class:`vit_jax.convert.format.Codec`.

    Raises:
      UserError: transformers is not installed, or refuses the weights.
    """
    settings = beside(path).get(FILE) or {}
    with open_tensors(path) as theirs:
        if not settings:
            check_limits(model, LIMITS)
            settings = content(model, 224 // model.patch * model.patch)
        arrays = {name: np.array(leaf.read(), np.float32) for name, leaf in theirs.items()}
    with needed("comparing with transformers", "torch"):
        import transformers

        kind = transformers.DINOv3ViTModel
    module = instantiate(kind, settings, arrays, path)
    return torch_peer(lambda pixels: module(pixels).pooler_output)


CODEC = Codec(
    (ViT,), matches, read, rules, write, peer, limits=LIMITS, processor=images,
    takes=lambda model: model.rotary is not None,
    says={"rotary": Rope, "ffn": Gated, "qkv_bias": str, "positions": str},
)  # fmt: skip
