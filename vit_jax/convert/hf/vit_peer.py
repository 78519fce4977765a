"""Hugging Face transformers' own models with weights of any file, to compare ours with."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_jax.convert.fields import shape, square
from vit_jax.convert.format import check_limits
from vit_jax.convert.hf import processor, vit_config
from vit_jax.convert.hf.vit_rules import MASK, POOLER, POSITIONS, Layout, layout_of
from vit_jax.convert.peer import torch_peer, torch_processor
from vit_jax.convert.pretrained import numbered
from vit_jax.io import atomic
from vit_jax.io.extras import needed
from vit_jax.io.sidecar import beside
from vit_jax.io.tensors import Tensors, open_tensors
from vit_jax.models import ViT
from vit_jax.types import Patches, UserError


def peer(path: pathlib.Path, model: ViT) -> Callable[[np.ndarray], np.ndarray]:
    """transformers' model with the weights at ``path``; see :class:`vit_jax.convert.format.Codec`.

    Raises:
      UserError: transformers is not installed, or refuses the weights.
    """
    module = build(path, model)

    def forward(pixels: Any) -> Any:
        out = module(pixels)
        if hasattr(out, "logits"):
            return out.logits
        if model.distilled:
            return out.last_hidden_state[:, :2].mean(1)
        pooled = getattr(out, "pooler_output", None)
        return out.last_hidden_state[:, 0] if pooled is None else pooled

    return torch_peer(forward)


def build(path: pathlib.Path, model: ViT) -> Any:
    """The ``torch.nn.Module`` behind :func:`peer`.

    Its settings are those of the ``config.json`` beside the weights, else those of our ``model``.

    Raises:
      UserError: see :func:`peer`.
    """
    settings = beside(path).get(vit_config.FILE) or {}
    with open_tensors(path) as theirs:
        layout = layout_of(theirs, settings)
        settings = settings or _of(model, theirs, layout)
        names = [name for name in theirs if not name.startswith("decoder.")]
        arrays = {name: np.array(theirs[name].read(), np.float32) for name in names}
    with needed("comparing with transformers", "torch"):
        import transformers

        kind = getattr(transformers, vit_config.class_of(layout))
    pooling: dict[str, Any] = {}
    if layout.family == "vit_mae":
        settings = {**settings, "mask_ratio": 0.0}
    elif not (layout.dino or layout.headed):
        pooling["add_pooling_layer"] = f"{layout.prefix}{POOLER}.weight" in arrays
    return instantiate(kind, settings, arrays, path, **pooling)


def instantiate(
    kind: Any, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray], path: pathlib.Path, **options: Any
) -> Any:
    """transformers' model of the class ``kind`` with ``arrays``: float32, eager attention, in evaluation mode.

    Raises:
      UserError: it refuses the ``settings`` or the arrays, which are of the file at ``path``.
    """
    with needed("comparing with transformers", "torch"):
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
    options |= {"attn_implementation": "eager", "output_loading_info": True}
    try:
        config = kind.config_class.from_dict(dict(settings))
        state = {name: torch.from_numpy(x) for name, x in arrays.items()}
        module, report = kind.from_pretrained(None, config=config, state_dict=state, **options)
    except Exception as e:  # whatever transformers makes of settings and shapes that do not fit
        raise UserError(f"transformers refuses the weights at {path} ({(str(e) or repr(e)).splitlines()[0]}).") from e
    if lost := sorted(name for name in report["missing_keys"] if not name.endswith(MASK)):
        raise UserError(f"transformers finds no {lost[0]} at {path} and would draw it at random; nothing is compared.")
    return module.float().eval()


def images(path: pathlib.Path, model: Any) -> Callable[[pathlib.Path], Any] | None:
    """transformers' own processor of images, as the ``preprocessor_config.json`` beside ``path`` has it."""
    about = beside(path)
    if processor.FILE not in about:
        return None
    with needed("preparing images as transformers does", "torch"):
        import transformers
    with tempfile.TemporaryDirectory() as folder:
        for name in (processor.FILE, vit_config.FILE):
            atomic.write_text(pathlib.Path(folder, name), json.dumps(about.get(name, {})))
        process = transformers.AutoImageProcessor.from_pretrained(folder)

    def run(image: Any) -> Any:
        out = process(image, return_tensors="np")
        if "spatial_shapes" not in out:
            return out["pixel_values"][0]
        real, (_, columns) = out["pixel_attention_mask"][0].astype(bool), out["spatial_shapes"][0]
        at = np.stack(np.divmod(np.arange(len(real)), columns), axis=-1)
        return Patches(out["pixel_values"][0].astype(np.float32), np.where(real[:, None], at, 0).astype(np.int32), real)

    return torch_processor(run)


def _of(model: ViT, theirs: Tensors, layout: Layout) -> dict[str, Any]:
    check_limits(model, vit_config.LIMITS)
    positions = shape(theirs, layout.prefix + POSITIONS, 3)[1]
    size = model.patch * square(positions - 1 - model.distilled, "the position embedding")
    return vit_config.content(model, layout, size, numbered((), model.num_classes), "softmax")
