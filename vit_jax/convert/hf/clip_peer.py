"""transformers' own CLIP or SigLIP with weights of any file, to compare ours with."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.convert.format import check_limits
from vit_jax.convert.hf import clip_config
from vit_jax.convert.hf.clip_rules import BUFFERS, family_of, image_size
from vit_jax.convert.hf.vit_config import FILE
from vit_jax.convert.hf.vit_peer import instantiate
from vit_jax.convert.peer import torch_peer
from vit_jax.io.extras import needed
from vit_jax.io.sidecar import beside
from vit_jax.io.tensors import open_tensors
from vit_jax.models import TwoTower
from vit_jax.types import Patches


def peer(path: pathlib.Path, model: TwoTower) -> Callable[[Any, np.ndarray], dict[str, np.ndarray]]:
    """transformers' model with the weights at ``path``; see :class:`vit_jax.convert.format.Codec`.

    Raises:
      UserError: transformers is not installed, or refuses the weights.
    """
    module = build(path, model)

    def forward(pixels: Any, tokens: Any) -> dict[str, Any]:
        out = module(input_ids=tokens, **seen(pixels))
        return {"image embedding": out.image_embeds, "text embedding": out.text_embeds, "logit": out.logits_per_image}

    return torch_peer(forward)


def seen(pixels: Any) -> dict[str, Any]:
    """Images as transformers' models take them."""
    if not isinstance(pixels, Patches):
        return {"pixel_values": pixels}
    shapes = pixels.at.amax(1) + 1
    return {"pixel_values": pixels.pixels, "pixel_attention_mask": pixels.real.int(), "spatial_shapes": shapes}


def build(path: pathlib.Path, model: TwoTower) -> Any:
    """The ``torch.nn.Module`` behind :func:`peer`; its settings are those beside the weights, else our ``model``'s.

    Raises:
      UserError: see :func:`peer`.
    """
    settings = beside(path).get(FILE) or {}
    with open_tensors(path) as theirs:
        family = family_of(theirs, settings)
        if not settings:
            size = image_size(theirs, family, model.image_tower.patch)
            check_limits(model, clip_config.LIMITS)
            settings = clip_config.content(model, clip_config.nearest(model), size, None)
        arrays = {name: np.array(leaf.read(), np.float32) for name, leaf in theirs.items() if name not in BUFFERS}
    with needed("comparing with transformers", "torch"):
        import transformers

        kind = getattr(transformers, f"{clip_config.FAMILIES[family].title}Model")
    return instantiate(kind, settings, arrays, path)
