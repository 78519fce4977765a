"""transformers' own CLIP or SigLIP with weights of any file, to compare ours with."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.convert import hf_clip_config
from vit_jax.convert.base import square
from vit_jax.convert.hf_clip_names import BUFFERS, POSITIONS, family_of
from vit_jax.convert.hf_config import FILE
from vit_jax.convert.hf_names import shape
from vit_jax.convert.hf_peer import instantiate
from vit_jax.convert.peer import packages
from vit_jax.io.sidecar import beside
from vit_jax.io.tensors import open_tensors
from vit_jax.models import TwoTower


def peer(path: pathlib.Path, model: TwoTower) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """transformers' model with the weights at ``path``; see :class:`vit_jax.convert.base.Format`.

    Raises:
      UserError: transformers is not installed, or refuses the weights.
    """
    module = build(path, model)
    import torch

    def run(images: np.ndarray, texts: np.ndarray) -> dict[str, np.ndarray]:
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        with torch.no_grad():
            out = module(input_ids=torch.from_numpy(texts.astype(np.int64)), pixel_values=pixels)
        found = {"image embedding": out.image_embeds, "text embedding": out.text_embeds, "logit": out.logits_per_image}
        return {name: x.numpy() for name, x in found.items()}

    return run


def build(path: pathlib.Path, model: TwoTower) -> Any:
    """The ``torch.nn.Module`` behind :func:`peer`; its settings are those beside the weights, else our ``model``'s.

    Raises:
      UserError: see :func:`peer`.
    """
    settings = beside(path).get(FILE) or {}
    with open_tensors(path) as theirs:
        family = family_of(theirs, settings)
        if not settings:
            tokens = shape(theirs, POSITIONS[0], 2)[0] - (family == "clip")
            size = model.image_tower.patch * square(tokens, "the position embedding")
            settings = hf_clip_config.content(model, hf_clip_config.check(model), size, None)
        arrays = {name: np.array(leaf.read(), np.float32) for name, leaf in theirs.items() if name not in BUFFERS}
    with packages("comparing with transformers"):
        import transformers

        kind = getattr(transformers, f"{hf_clip_config.FAMILIES[family].title}Model")
    return instantiate(kind, settings, arrays, path)
