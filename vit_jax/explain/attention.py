"""What a ViT looks at: attention maps, their rollout, and pictures of what tokens are worth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from vit_jax.models.roles import LAYER
from vit_jax.report import plots
from vit_jax.types import Array, Params, UserError

DARK = 0.12
"""Brightness of what a model does not look at."""


def by_block(collection: dict[str, Any]) -> list[Any]:
    """Of "intermediates" or "perturbations", what the encoder's blocks have under "attention", in their order."""
    found = [(path, v) for path, v in flatten_dict(collection).items() if "encoder" in path and path[-1] == "attention"]
    depth = lambda item: [int(match[2]) for match in map(LAYER.match, item[0]) if match]  # noqa: E731
    return [value for _, value in sorted(found, key=depth)]


def attention_maps(model: nn.Module, params: Params, images: Array) -> jax.Array:
    """Attention probabilities of every block.

    Args:
      model: a model with self-attention blocks in ``encoder``.
      params: its parameters.
      images: float32[B,H,W,3], normalised as in training.

    Returns:
      float32[L,B,K,N,N]: layer, image, head, query token, key token; rows sum to 1.

    Raises:
      UserError: the model has no self-attention (a Mixer), or not all of its blocks see equally many tokens.
    """
    _, state = model.apply({"params": params}, images, mutable=["intermediates"])
    maps = by_block(state.get("intermediates", {}))
    if not maps:
        raise UserError(f"{type(model).__name__} has no attention to show; take a ViT.")
    if len(sizes := {probabilities.shape[-1] for (probabilities,) in maps}) > 1:
        raise UserError(
            f"attention of blocks that see {max(sizes)} down to {min(sizes)} tokens has no one picture; set "
            "reduce=None, on which no parameter depends but those of lookup."
        )
    if maps[0][0].shape[0] != len(images):
        raise UserError("attention of an image's tiles has no one picture; set scales=(1,), and it is of the whole.")
    return jnp.stack([probabilities for (probabilities,) in maps]).astype(jnp.float32)


def rollout(maps: Array) -> jax.Array:
    """How much of each input token reaches each output token (Abnar and Zuidema, arXiv:2005.00928, section 3).

    Heads are averaged, the residual path counts as identity: ``A = (mean + I) / 2``, multiplied from the first layer
    to the last.

    Args:
      maps: float[L,B,K,N,N] as :func:`attention_maps` returns them.

    Returns:
      float32[B,N,N]: row, output token; column, input token; rows sum to 1.
    """
    mixed = (jnp.mean(jnp.asarray(maps, jnp.float32), axis=2) + jnp.eye(maps.shape[-1])[None, None]) / 2
    total = mixed[0]
    for layer in mixed[1:]:
        total = jnp.einsum("bij,bjk->bik", layer, total)
    return total


def heatmap(weights: Array, grid: tuple[int, int], prefix: int = 0) -> jax.Array:
    """Token weights as a picture: float[B,N] -> float32[B,h,w], the ``prefix`` tokens left out, the largest value 1."""
    picture = jnp.asarray(weights, jnp.float32)[:, prefix : prefix + grid[0] * grid[1]].reshape(-1, *grid)
    return picture / jnp.max(picture, axis=(1, 2), keepdims=True)


def draw(
    model: Any, params: Params, images: Array, path: str | os.PathLike[str], texts: Sequence[object] | None = None
) -> None:
    """Writes a picture of images, and below it of what reaches the output by attention: the brighter, the more.

    Brightness rises with the share of a patch, from :data:`DARK` to that of the image for the largest 2 %.

    Args:
      model: a ViT.
      params: its parameters.
      images: float32[B,H,W,3], normalised as in training.
      path: the file to write.
      texts: what each image is called.

    Raises:
      UserError: see :func:`attention_maps`.
    """
    maps = attention_maps(model, params, images)
    _, grid = model.apply({"params": params}, images, False, method="embed")
    reach = rollout(maps)
    reach = reach[:, 0] if model.pool == "cls" else reach.mean(1)
    heat = heatmap(reach, grid, maps.shape[-1] - grid[0] * grid[1])
    seen = plots.displayable(np.asarray(images))
    bright = jnp.minimum(heat / jnp.percentile(heat, 98, axis=(1, 2), keepdims=True), 1)
    light = np.asarray(jax.image.resize(DARK + (1 - DARK) * bright, seen.shape[:3], "bilinear"))[..., None]
    called = [str(text) for text in texts or [""] * len(seen)]
    sections = {"what the model sees": (seen, called), "what it looks at": (seen * light, called)}
    plots.contact_sheet(sections, path)
