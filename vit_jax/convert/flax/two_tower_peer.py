"""open_clip's reader of big_vision's image-text models: an independent one to compare with."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from vit_jax.convert.flax.two_tower import prefix_of, read
from vit_jax.convert.peer import torch_peer
from vit_jax.io.extras import needed
from vit_jax.io.tensors import open_tensors
from vit_jax.models import TwoTower, ViT
from vit_jax.types import UserError


def peer(path: pathlib.Path, model: TwoTower) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """open_clip's towers with the weights at ``path``; see :class:`vit_jax.convert.format.Codec`.

    Raises:
      UserError: open_clip or timm is not installed, or has no reader for these weights.
    """
    module = build(path, model)
    from torch.nn.functional import normalize

    def forward(pixels: Any, tokens: Any) -> dict[str, Any]:
        image, text = normalize(module.visual.trunk(pixels), dim=-1), normalize(module.text(tokens), dim=-1)
        logits = module.logit_scale.exp() * image @ text.T + module.logit_bias
        return {"image embedding": image, "text embedding": text, "logit": logits}

    return torch_peer(forward)


def build(path: pathlib.Path, model: TwoTower) -> Any:
    """A ``torch.nn.Module`` with ``visual.trunk``, ``text`` and the two scalars.

    The sizes are those of the file; what a file does not say (activations, epsilons) is that of ``model``.

    Raises:
      UserError: see :func:`peer`.
    """
    image, text = model.image_tower, model.text_tower
    with open_tensors(path) as theirs:
        images = read(theirs, {}).preprocess
        _check(model, theirs.keys())
    with needed("building open_clip's own model", "torch"):
        import torch
        from open_clip.convert import load_big_vision_weights
        from open_clip.transformer import TextTransformer
        from timm.layers import get_act_layer
        from timm.models.vision_transformer import VisionTransformer
    norm = functools.partial(torch.nn.LayerNorm, eps=image.norm_epsilon)
    module = torch.nn.Module()
    module.visual = torch.nn.Module()
    module.visual.trunk = VisionTransformer(
        img_size=images.size + images.frame.rest,
        patch_size=image.patch,
        num_classes=0,
        global_pool="map",
        embed_dim=image.width,
        depth=image.depth,
        num_heads=image.heads,
        mlp_ratio=(image.mlp_dim + 0.5) / image.width,  # timm multiplies and rounds down
        class_token=False,
        norm_layer=norm,
        act_layer=image.activation,
    )
    module.text = TextTransformer(
        context_length=text.length,
        vocab_size=text.vocab_size,
        width=text.width,
        heads=text.heads,
        layers=text.depth,
        mlp_ratio=(text.mlp_dim + 0.5) / text.width,
        output_dim=model.embed_dim,
        no_causal_mask=True,
        pool_type=text.pool,
        proj_bias=True,
        act_layer=get_act_layer(text.activation),
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=text.norm_epsilon),
    )
    module.logit_scale, module.logit_bias = (torch.nn.Parameter(torch.zeros([])) for _ in range(2))
    try:
        load_big_vision_weights(module, str(path))
    except (KeyError, RuntimeError) as e:
        raise UserError(f"open_clip's reader refuses {path} ({(str(e) or repr(e)).splitlines()[0]}).") from e
    return module.eval()


def _check(model: TwoTower, names: Collection[str]) -> None:
    """Raises :class:`UserError` where open_clip's reader does not know the model."""
    image, text = model.image_tower, model.text_tower
    pool = image.pool if isinstance(image, ViT) else None
    unknown = {
        "a head on images": model.image_head != "none",
        "a text tower without a head": model.text_head == "none",
        "no bias": model.bias is None,
        "other names of the image tower": f"{prefix_of(names)}img/pos_embedding" not in names,
        f"images pooled by {pool!r}": pool != "map",
        f"texts pooled by {text.pool!r}": text.pool not in ("last", "first"),
    }
    if what := [what for what, there in unknown.items() if there]:
        raise UserError(
            f"open_clip's reader of these files knows SigLIP, not models with {' and '.join(what)}, so it cannot "
            "verify this one; leave --verify out."
        )
