"""What explanations share: from what blocks did to values of tokens to a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from vit_jax.models.roles import LAYER
from vit_jax.types import Array


def by_block(collection: Mapping[str, Any]) -> list[Any]:
    """Of "intermediates" or "perturbations", what the encoder's blocks have under "attention", in their order."""
    found = [(path, v) for path, v in flatten_dict(collection).items() if "encoder" in path and path[-1] == "attention"]
    depth = lambda item: [int(match[2]) for match in map(LAYER.match, item[0]) if match]  # noqa: E731
    return [value for _, value in sorted(found, key=depth)]


def heatmap(weights: Array, grid: tuple[int, int], prefix: int = 0) -> jax.Array:
    """Token weights as a picture: float[B,N] -> float32[B,h,w], the ``prefix`` tokens left out, the largest value 1."""
    picture = jnp.asarray(weights, jnp.float32)[:, prefix : prefix + grid[0] * grid[1]].reshape(-1, *grid)
    return picture / jnp.max(picture, axis=(1, 2), keepdims=True)
