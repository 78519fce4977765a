"""How lazy the neurons are: the shares of hidden units that are not 0, in training and in evaluation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from vit_jax.metrics import Mean
from vit_jax.objectives.base import Apply, Metrics
from vit_jax.types import Array, UserError


def shares(apply: Apply, mask: Array, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, jax.Array]]:
    """``apply(*args, **kwargs)`` and what its MLPs let fire.

    Args:
      apply: the model as a function of its parameters.
      mask: bool[B], for the number of examples: what is there another number of times is left out, as the MLP of a
        pooling whose queries are the same for all.

    Returns:
      The model's output, and by name ("block_0/mlp") the share of an MLP's hidden units that are not 0, mean over the
      tokens, float32[B] (Li et al. 2022, arXiv:2210.06313, section 2).

    Raises:
      UserError: the model has no MLP.
    """
    out, state = apply(*args, **kwargs, mutable=["activity"])
    found = {_short(path): sown[0] for path, sown in flatten_dict(state.get("activity", {})).items()}
    found = {name: share for name, share in found.items() if len(share) == len(mask)}
    if not found:
        raise UserError("activity is measured in MLPs, and this model has none; leave it out.")
    return out, {name: jnp.mean(share, axis=tuple(range(1, share.ndim))) for name, share in found.items()}


def metrics(found: dict[str, jax.Array], mask: Array) -> Metrics:
    """``active/block_0/mlp`` ... of :func:`shares`, and ``active``, the mean over the MLPs."""
    every = jnp.mean(jnp.stack(list(found.values())), axis=0)
    return {"active": Mean.of(every, mask), **{f"active/{name}": Mean.of(share, mask) for name, share in found.items()}}


def _short(path: tuple[str, ...]) -> str:
    """``("image_tower", "encoder", "block_0", "mlp", "active")`` -> ``"block_0/mlp"``."""
    return "/".join(p for p in path[:-1] if p not in ("image_tower", "encoder"))
