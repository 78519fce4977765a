"""What formats share in reading the descriptions of others."""

from __future__ import annotations

from vit_jax import models
from vit_jax.types import UserError


def square(tokens: int, what: str) -> int:
    """Side of the square grid with ``tokens`` patches.

    Raises:
      UserError: it is none.
    """
    side = round(tokens**0.5)
    if side * side != tokens:
        raise UserError(f"{what} holds {tokens} positions, no square grid; only square images are converted.")
    return side


def heads_of(width: int, depth: int, mlp_dim: int) -> tuple[int, str | None]:
    """Number of heads of a published ViT of this size, else one per 64 channels and a note that says so."""
    for fields in models.vit.SIZES.values():
        if (fields["width"], fields["depth"], fields["mlp_dim"]) == (width, depth, mlp_dim):
            return fields["heads"], None
    heads = max(1, width // 64)
    return heads, f"{heads} heads are assumed (one per 64 channels; no published model is {width} wide, {depth} deep)"
