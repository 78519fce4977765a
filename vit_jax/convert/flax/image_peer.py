"""timm's models with the weights of an ``.npz`` file, read by timm itself: an independent reader to compare with."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.convert.flax import two_tower
from vit_jax.convert.flax.image import SIDECAR, read
from vit_jax.convert.peer import torch_peer, torch_processor
from vit_jax.io.extras import needed
from vit_jax.io.sidecar import beside
from vit_jax.io.tensors import open_tensors
from vit_jax.models import ImageModel, ViT
from vit_jax.models.resnet import NUMERICS
from vit_jax.types import UserError


def peer(path: pathlib.Path, model: ImageModel) -> Callable[[np.ndarray], np.ndarray]:
    """:func:`build_peer` as a function of images float32 ``[B,H,W,3]`` -> logits float32 ``[B,C]``."""
    return torch_peer(build_peer(path, model))


def processor(path: pathlib.Path, model: Any) -> Callable[[pathlib.Path], np.ndarray] | None:
    """PyTorch's equal of ``tf.image.resize``, by which both projects squash images; None where a sidecar is."""
    if SIDECAR in beside(path):
        return None
    with open_tensors(path) as theirs:
        found = (two_tower.read if two_tower.prefix_of(theirs.keys()) is not None else read)(theirs, {}).preprocess
    with needed("preparing images", "torch"):
        import torch
    side = found.size + found.frame.rest

    def process(image: Any) -> Any:
        pixels = torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1))[None]
        resized = torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=False)[0]
        return resized / 127.5 - 1

    return torch_processor(process)


def build_peer(path: pathlib.Path, model: ImageModel) -> Any:
    """timm's model in the place of ``model``, a ``torch.nn.Module`` of images ``[B,3,H,W]``.

    The sizes are those of the file; what a file does not say (activation, epsilons) is that of ``model``.

    Args:
      path: an ``.npz`` of the original repository or of big_vision.
      model: ours.

    Raises:
      UserError: timm is not installed, or has no such model or no reader for it.
    """
    if not isinstance(model, ViT):
        raise UserError("timm has no reader for Mixer files in this layout; convert to timm and verify there.")
    for what, has in {
        "the layer pre_logits": model.pre_logits is not None,
        "fixed sin-cos positions": model.positions != "learn",
    }.items():
        if has:
            raise UserError(f"timm's reader of these files does not know {what}, so it cannot verify this model.")
    with needed("building timm's own model", "torch"):
        import torch
        from timm.layers import HybridEmbed
        from timm.models.vision_transformer import VisionTransformer
        from timm.models.vision_transformer_hybrid import _resnetv2
    with open_tensors(path) as theirs:
        found = read(theirs, {})
    options: dict[str, Any] = {
        "img_size": found.preprocess.size,
        "patch_size": model.patch,
        "num_classes": model.num_classes,
        "global_pool": {"cls": "token", "gap": "avg", "map": "map"}[model.pool],
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": (model.mlp_dim + 0.5) / model.width,  # timm multiplies and rounds down
        "class_token": model.pool == "cls",
        "no_embed_class": not found.layout.cls_position,
        "fc_norm": False,
        "norm_layer": functools.partial(torch.nn.LayerNorm, eps=model.norm_epsilon),
        "act_layer": model.activation,
    }
    if model.stem is not None:
        options["embed_layer"] = functools.partial(HybridEmbed, backbone=_resnetv2(model.stem))
    network = VisionTransformer(**options)
    try:
        network.load_pretrained(str(path))
    except KeyError as e:
        raise UserError(f"timm's reader of these files expects {e}, so it cannot verify {path}.") from e
    if model.stem is not None and model.stem_numerics == "original":
        _original_numerics(network.patch_embed.backbone, torch)
    return network.eval()


def _original_numerics(backbone: Any, torch: Any) -> None:
    """Gives timm's stem the epsilons of the original.

    timm divides a centred kernel by ``sqrt(variance + eps)``, the original by ``deviation + 1e-5``: equal for a kernel
    that is scaled so that ``eps`` counts as much.
    """
    for module in backbone.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = NUMERICS["original"].group_norm
        elif isinstance(module, torch.nn.Conv2d):
            weight = module.weight.data
            deviation = weight.std(dim=(1, 2, 3), keepdim=True, correction=0)
            weight *= (module.eps / (2e-5 * deviation + 1e-10)).sqrt()
