"""ViT, DeiT, ViTMAE and DINOv2 of Hugging Face transformers, bare or with a classifier.

A bare ViT may end in a pooler, which is our pre-logits layer. DINOv2's classifier sees the cls token beside the average
of the grid, without registers (transformers averaged those too before its pull request 37836). Bare models give the
normalised cls token. Of ViTMAE the encoder is read, as it is without masks; a ViT is what is written of it.
"""

from __future__ import annotations

import numpy as np

from vit_jax.convert.fields import shape, square
from vit_jax.convert.format import Codec, Reading, Writing
from vit_jax.convert.hf import processor, vit_config
from vit_jax.convert.hf.vit_peer import images, peer
from vit_jax.convert.hf.vit_rules import MASK, POOLER, POSITIONS, Layout, layout_of, matches, rules
from vit_jax.convert.pretrained import Stored, numbered
from vit_jax.io.sidecar import About
from vit_jax.io.tensors import Tensor, Tensors
from vit_jax.layers.embed import sincos_positions
from vit_jax.layers.gated import Gated
from vit_jax.models import ViT
from vit_jax.types import OutputActivation


def read(theirs: Tensors, about: About) -> Reading:
    """The model behind the tensors; see :class:`vit_jax.convert.format.Codec`.

    Raises:
      UserError: another of transformers' models, a setting that is not ours, a tensor that is missing.
    """
    settings = about.get(vit_config.FILE) or {}
    layout = layout_of(theirs, settings)
    model, notes, assumed = vit_config.fields(theirs, layout, settings)
    rows = shape(theirs, layout.prefix + POSITIONS, 3)[1] - (2 if layout.family == "deit" else 1)
    size = model["patch"] * square(rows, "the position embedding")
    preprocess, more = processor.read(about.get(processor.FILE), layout.family, size, model["patch"])
    names, unnamed = vit_config.class_names(settings.get("id2label"), model["num_classes"])
    unused = {layout.prefix + MASK: "only training on masked images uses it"}
    unused |= {name: "the decoder of masked training" for name in theirs if name.startswith("decoder.")}
    if layout.headed or layout.family == "deit":
        unused |= {f"{layout.prefix}{POOLER}.{part}": "the classifier does not use it" for part in ("weight", "bias")}
    output_activation: OutputActivation = (
        "sigmoid" if settings.get("problem_type") == "multi_label_classification" else "softmax"
    )
    native = size if preprocess.size != size else None
    resize = "bicubic" if layout.family == "dinov2_with_registers" else None  # they alone are smoothed
    found = (*notes, *more, *unnamed)
    return Reading(
        model, preprocess, names, layout, unused, found, output_activation, resize, assumed=assumed, native=native
    )


def write(pretrained: Stored) -> Writing:
    """How transformers stores the model: an image model as ViT where that has all it needs, else as DINOv2."""
    model = pretrained.model
    headed = model.num_classes > 0 or model.pool == "cls_gap"
    family = "dinov2_with_registers" if model.registers else "dinov2" if vit_config.needs_dino(model) else "vit"
    family = "deit" if model.distilled else family
    layout = Layout(family, headed, f"{family}." if headed else "", gated=model.ffn is not None)
    size = pretrained.native or pretrained.preprocess.size + pretrained.preprocess.frame.rest
    shown, notes = processor.write(pretrained.preprocess)
    extra = {}
    if model.positions == "sincos2d":
        grid = sincos_positions(size // model.patch, size // model.patch, model.width)
        extra[layout.prefix + POSITIONS] = Tensor.of(np.pad(grid, ((1 + model.distilled, 0), (0, 0)))[None])
        notes.append("the fixed positions are written as numbers; read again they count as learned ones")
    if layout.dino:
        extra[layout.prefix + MASK] = Tensor.of(np.zeros((1, model.width), np.float32))
    if layout.dino and model.layer_scale is None:
        ones = Tensor.of(np.ones(model.width, np.float32))
        blocks = [f"{layout.blocks}{i}" for i in range(model.depth)]
        extra |= {f"{block}.layer_scale{i}.lambda1": ones for block in blocks for i in (1, 2)}
        notes.append("the model has no layer scale, DINOv2 has: ones are written")
    if not layout.dino and not headed and model.pre_logits is None:
        notes.append(
            "load this bare ViT by AutoModel.from_pretrained(..., add_pooling_layer=False), or it gets a random pooler"
        )
    config = vit_config.content(
        model, layout, size, numbered(pretrained.class_names, model.num_classes), pretrained.output_activation
    )
    return Writing(layout, {vit_config.FILE: config, processor.FILE: shown}, tuple(notes), extra)


CODEC = Codec(
    (ViT,), matches, read, rules, write, peer, limits=vit_config.LIMITS, says={"ffn": Gated, "distilled": bool},
    processor=images,
)  # fmt: skip
