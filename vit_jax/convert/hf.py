"""Hugging Face transformers: CLIP and SigLIP, and ViT, DINOv2 and DINOv2 with registers, bare or with a classifier.

Image-text models are in :mod:`vit_jax.convert.hf_clip`, the others here.

A bare ViT may end in a pooler, which is our pre-logits layer. DINOv2's classifier sees the cls token beside the average
of the grid, without registers (transformers averaged those too before its pull request 37836). Bare models give the
normalised cls token.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from vit_jax.convert import hf_clip, hf_clip_names, hf_clip_peer, hf_config, hf_names, hf_peer, hf_processor
from vit_jax.convert.base import Format, Reading, Stored, Writing, numbered, square
from vit_jax.convert.hf_names import MASK, POOLER, POSITIONS, Layout, layout_of, shape
from vit_jax.convert.table import Rule
from vit_jax.io.sidecar import About
from vit_jax.io.tensors import Tensor, Tensors
from vit_jax.layers.embed import sincos_positions
from vit_jax.models import TwoTower


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are of one of transformers' models, even of one not converted."""
    return hf_names.matches(names) or hf_clip_names.matches(names)


def rules(model: Any, layout: Any) -> list[Rule]:
    """Every tensor of a file; ``layout`` is as :func:`read` or :func:`write` gave it."""
    return (hf_clip_names if isinstance(model, TwoTower) else hf_names).rules(model, layout)


def peer(path: pathlib.Path, model: Any) -> Callable[..., Any]:
    """transformers' model with the weights at ``path``; see :class:`vit_jax.convert.base.Format`."""
    return (hf_clip_peer if isinstance(model, TwoTower) else hf_peer).peer(path, model)


def read(theirs: Tensors, about: About) -> Reading:
    """The model behind the tensors; see :class:`vit_jax.convert.base.Format`.

    Raises:
      UserError: another of transformers' models, a setting that is not ours, a tensor that is missing.
    """
    if hf_clip_names.matches(theirs):
        return hf_clip.read(theirs, about)
    settings = about.get(hf_config.FILE) or {}
    layout = layout_of(theirs, settings)
    model, notes = hf_config.fields(theirs, layout, settings)
    size = model["patch"] * square(shape(theirs, layout.prefix + POSITIONS, 3)[1] - 1, "the position embedding")
    preprocess, more = hf_processor.read(about.get(hf_processor.FILE), layout.family, size)
    names, unnamed = hf_config.class_names(settings.get("id2label"), model["num_classes"])
    unused = {layout.prefix + MASK: "only training on masked images uses it"}
    if layout.headed:
        unused |= {f"{layout.prefix}{POOLER}.{part}": "the classifier does not use it" for part in ("weight", "bias")}
    output_activation = "sigmoid" if settings.get("problem_type") == "multi_label_classification" else "softmax"
    resize = "bicubic" if layout.family == "dinov2_with_registers" else None  # they alone are smoothed
    return Reading(model, preprocess, names, layout, unused, (*notes, *more, *unnamed), output_activation, resize)


def write(pretrained: Stored) -> Writing:
    """How transformers stores the model: an image model as ViT where that has all it needs, else as DINOv2.

    Raises:
      UserError: none of its models is this one.
    """
    if isinstance(pretrained.model, TwoTower):
        return hf_clip.write(pretrained)
    model = hf_config.check(pretrained.model)
    headed = model.num_classes > 0 or model.pool == "cls_gap"
    family = "dinov2_with_registers" if model.registers else "dinov2" if hf_config.needs_dino(model) else "vit"
    layout = Layout(family, headed, f"{family}." if headed else "")
    size = pretrained.preprocess.size
    processor, notes = hf_processor.write(pretrained.preprocess)
    extra = {}
    if model.positions == "sincos2d":
        grid = sincos_positions(size // model.patch, size // model.patch, model.width)
        extra[layout.prefix + POSITIONS] = Tensor.of(np.concatenate([np.zeros_like(grid[:1]), grid])[None])
        notes.append("the fixed positions are written as numbers; read again they count as learned ones")
    if layout.dino:
        extra[layout.prefix + MASK] = Tensor.of(np.zeros((1, model.width), np.float32))
    if layout.dino and model.layer_scale is None:
        ones = Tensor.of(np.ones(model.width, np.float32))
        blocks = [f"{layout.prefix}{layout.names.blocks}.{i}" for i in range(model.depth)]
        extra |= {f"{block}.layer_scale{i}.lambda1": ones for block in blocks for i in (1, 2)}
        notes.append("the model has no layer scale, DINOv2 has: ones are written")
    if not layout.dino and not headed and model.pre_logits is None:
        notes.append(
            "load this bare ViT by AutoModel.from_pretrained(..., add_pooling_layer=False), or it gets a random pooler"
        )
    config = hf_config.content(
        model, layout, size, numbered(pretrained.class_names, model.num_classes), pretrained.output_activation
    )
    return Writing(layout, {hf_config.FILE: config, hf_processor.FILE: processor}, tuple(notes), extra)


FORMAT = Format("hf", "Hugging Face transformers", ".safetensors", "bicubic_plain", matches, read, rules, write, peer)
