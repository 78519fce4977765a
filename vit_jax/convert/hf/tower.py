"""transformers' image towers by themselves: ``CLIPVisionModel``, ``SiglipVisionModel``, ``Siglip2VisionModel``.

Those of ``CLIPVisionModelWithProjection`` and of models built on a tower are the same; what else they hold is left out.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from vit_jax.convert.format import Codec, Reading, Writing
from vit_jax.convert.hf import clip_config, clip_rules, processor
from vit_jax.convert.hf.clip_peer import seen
from vit_jax.convert.hf.vit_config import FILE
from vit_jax.convert.hf.vit_peer import images, instantiate
from vit_jax.convert.peer import torch_peer
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import Rule
from vit_jax.io.extras import needed
from vit_jax.io.sidecar import About, beside
from vit_jax.io.tensors import Tensors, open_tensors
from vit_jax.models import ViT
from vit_jax.types import UserError

PATCHES, POSITIONS, BUFFER = (
    name.removeprefix(clip_rules.VISION)
    for name in (clip_rules.PATCHES, clip_rules.POSITIONS[0], clip_rules.BUFFERS[0])
)


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are of an image tower, without what precedes them in models of two."""
    return PATCHES in names and "post_layernorm.weight" in names


def read(theirs: Tensors, about: About) -> Reading:
    """The model behind the tensors; see :class:`vit_jax.convert.format.Codec`.

    Raises:
      UserError: a setting that is not ours, a tensor that is missing.
    """
    family, settings = clip_rules.kind_of(theirs, ""), _settings(about.get(FILE) or {})
    width, patch = clip_config.patches_of(theirs, family, PATCHES)
    given = {**clip_config.FAMILIES[family].defaults[clip_rules.VISION], **settings}
    fields, assumed = clip_config.tower(theirs, "", width, given, bool(settings))
    size = clip_rules.image_size(theirs, family, patch, POSITIONS)
    preprocess, more = processor.read(about.get(processor.FILE), family, size, patch)
    model = {"name": "vit", "num_classes": 0, "patch": patch, **fields, **clip_config.FAMILIES[family].image}
    model |= clip_config.grid_of(theirs, family, POSITIONS)
    unused = {BUFFER: "positions are counted, not stored"}
    return Reading(model, preprocess, layout=family, unused=unused, notes=tuple(more), assumed=assumed)


def rules(model: ViT, family: str) -> list[Rule]:
    """Every tensor of a file of ``family`` and the parameters of ``model`` that it holds."""
    return clip_rules.image_rules("", "", family, model)


def write(pretrained: Stored) -> Writing:
    """None is written: a tower alone is none of the models that are.

    Raises:
      UserError: always.
    """
    raise UserError(f"transformers' towers are read alone; {pretrained.source} is written --to vit_jax or timm.")


def peer(path: pathlib.Path, model: ViT) -> Callable[[Any], np.ndarray]:
    """transformers' tower with the weights at ``path``; see :class:`vit_jax.convert.format.Codec`.

    Raises:
      UserError: transformers is not installed, or refuses the weights.
    """
    settings = _settings(beside(path).get(FILE) or {})
    with open_tensors(path) as theirs:
        family = clip_rules.kind_of(theirs, "")
        size = clip_rules.image_size(theirs, family, model.patch, POSITIONS)
        settings = settings or clip_config.image_content(model, size)
        arrays = {name: np.array(leaf.read(), np.float32) for name, leaf in theirs.items() if name != BUFFER}
    with needed("comparing with transformers", "torch"):
        import transformers

        kind = getattr(transformers, f"{clip_config.FAMILIES[family].title}VisionModel")
    module = instantiate(kind, settings, arrays, path)
    return torch_peer(lambda pixels: module(**seen(pixels)).pooler_output)


def _settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those of the tower: of a model that has one, or of the tower itself; {} where neither is described."""
    inner = settings.get("vision_config")
    return inner if isinstance(inner, Mapping) else settings if "num_attention_heads" in settings else {}


CODEC = Codec((), matches, read, rules, write, peer, processor=images)
