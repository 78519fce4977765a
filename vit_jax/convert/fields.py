"""What formats share in reading the descriptions and tensors of others."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vit_jax import models
from vit_jax.convert.pretrained import RGB
from vit_jax.io.tensors import Tensors
from vit_jax.types import UserError


def shape(theirs: Tensors, name: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor that tells the size of the model.

    Raises:
      UserError: it is missing or of another rank.
    """
    if name not in theirs:
        raise UserError(f"the weights lack {name}, which tells the size of the model; get the whole file.")
    if len(found := theirs[name].shape) != rank:
        raise UserError(f"{name} has the shape {found}, expected {rank} axes; the file is of another model or damaged.")
    return found


def patches(theirs: Tensors, name: str, channels: int = 3) -> tuple[int, int]:
    """Width and patch size that the weight ``[width, channels, patch, patch]`` of a convolution tells.

    Raises:
      UserError: it is missing, or of other patches.
    """
    found = shape(theirs, name, 4)
    if found[1] != channels or found[2] != found[3]:
        raise UserError(f"{name} is {found}; only square patches of {channels} channels can be converted.")
    return found[0], found[3]


def depth(theirs: Collection[str], start: str) -> int:
    """How many blocks there are: one more than the largest number behind the pattern ``start``."""
    found = (re.match(rf"{start}(\d+)\.", name) for name in theirs)
    return max((int(m[1]) for m in found if m), default=-1) + 1


def rgb(said: Mapping[str, Any], key: str, default: RGB, file: str) -> RGB:
    """The mean or deviation that the JSON ``file`` gives each channel.

    Raises:
      UserError: they are not three numbers.
    """
    value = said.get(key) or default
    if not isinstance(value, Sequence) or len(value) != 3 or not all(isinstance(x, int | float) for x in value):
        raise UserError(f"{key}={value!r} in {file} are not three numbers, one per channel.")
    return float(value[0]), float(value[1]), float(value[2])


def token(value: Any) -> str | None:
    """A special token's text in either of its spellings."""
    return value.get("content") if isinstance(value, Mapping) else value


def unsupported(what: str, why: str, title: str, known: str) -> UserError:
    """The error for a part that no model here has; of the models of ``title``, ``known`` are those that we have."""
    return UserError(f"{what} cannot be expressed here ({why}); of {title}'s models {known} can be converted.")


def square(tokens: int, what: str) -> int:
    """Side of the square grid with ``tokens`` patches.

    Raises:
      UserError: it is none.
    """
    side = round(tokens**0.5)
    if side * side != tokens:
        raise UserError(f"{what} holds {tokens} positions, no square grid; only square images are converted.")
    return side


def stride(stem: tuple[int, ...] | None) -> int:
    """Pixels per cell of the grid that a ResNet stem with these stages makes; 1 without a stem."""
    return 1 if stem is None else 2 ** max(len(stem) + 1, 2)


def heads_of(width: int, depth: int, mlp_dim: int) -> tuple[int, str | None]:
    """Number of heads of a published ViT of this size, else one per 64 channels and a note that says so."""
    for fields in models.vit.SIZES.values():
        if (fields["width"], fields["depth"], fields["mlp_dim"]) == (width, depth, mlp_dim):
            return fields["heads"], None
    heads = max(1, width // 64)
    return heads, f"{heads} heads are assumed (one per 64 channels; no published model is {width} wide, {depth} deep)"
