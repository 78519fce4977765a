"""What formats share in reading the descriptions and tensors of others."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from vit_jax import architectures
from vit_jax.convert.preprocess import RGB
from vit_jax.io.tensors import Tensors
from vit_jax.types import UserError

MIN_CROP, MAX_SIZE = 0.05, 2**13
"""The smallest part of an image's side that may be kept, and the largest input in pixels."""


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


def patches(theirs: Tensors, name: str, *channels: int) -> tuple[int, int]:
    """Width and patch size that the weight ``[width, channels, patch, patch]`` of a convolution tells.

    Args:
      theirs: all tensors.
      name: of the weight.
      channels: numbers of them that can be read; 3 where none is given.

    Raises:
      UserError: it is missing, or of other patches.
    """
    found = shape(theirs, name, 4)
    allowed = channels or (3,)
    if found[1] not in allowed or found[2] != found[3]:
        some = " or ".join(map(str, allowed))
        raise UserError(f"{name} is {found}; only square patches of {some} channels can be converted.")
    return found[0], found[3]


def flat_patches(theirs: Tensors, name: str) -> tuple[int, int]:
    """As :func:`patches`, of the weight ``[width, patch * patch * 3]`` of a linear map.

    Raises:
      UserError: it is missing, or of other patches.
    """
    width, values = shape(theirs, name, 2)
    patch = math.isqrt(values // 3)
    if values != 3 * patch * patch:
        raise UserError(f"{name} is {(width, values)}; only square patches of 3 channels can be converted.")
    return width, patch


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
    if isinstance(value, Sequence) and len(value) == 1:  # of grey images
        value = [*value] * 3
    if not isinstance(value, Sequence) or len(value) != 3 or not all(isinstance(x, int | float) for x in value):
        raise UserError(f"{key}={value!r} in {file} are not three numbers, one per channel.")
    return float(value[0]), float(value[1]), float(value[2])


def token(value: Any) -> str | None:
    """A special token's text in either of its spellings."""
    return value.get("content") if isinstance(value, Mapping) else value


def unsupported(what: str, why: str, title: str, known: str) -> UserError:
    """The error for a part that no model here has; of the models of ``title``, ``known`` are those that we have."""
    return UserError(f"{what} cannot be expressed here ({why}); of {title}'s models {known} can be converted.")


def grid(
    rows: int, prefixes: Sequence[int], told: Iterable[tuple[int, int]], what: str, remedy: str = ""
) -> tuple[int, int]:
    """How the rows of a position embedding are laid out: those before the grid, and the side of the square grid.

    A number of rows may fit two layouts: 225 are a class token and 14 x 16 patches as well as 15 x 15 patches alone.

    Args:
      rows: of the embedding.
      prefixes: how many may come before the grid, the usual number first.
      told: heights and widths of the grid after the description beside the weights; one that fits decides.
      what: the tensor, for errors.
      remedy: what the user can do where it cannot be told, a sentence without its end.

    Raises:
      UserError: the grid is not square, or the layout cannot be told.
    """
    for height, width in told:
        for before in prefixes:
            if rows - before == height * width and height != width:
                size = f"{height} x {width} patches"
                raise UserError(f"{what} holds the positions of {size}; only square images are converted.")
            if rows - before == height * width:
                return before, height
    sides = {before: math.isqrt(max(rows - before, 0)) for before in prefixes}
    squares = {before: side for before, side in sides.items() if side and side * side == rows - before}
    if prefixes[0] in squares:
        return prefixes[0], squares[prefixes[0]]
    cells = rows - prefixes[0]
    if not squares:
        raise UserError(f"{what} holds {cells} positions, no square grid; only square images are converted.")
    before, side = next(iter(squares.items()))
    if height := next((h for h in range(side, side // 2, -1) if cells > 0 and cells % h == 0), 0):
        first, second = (f"those of {n} tokens and of" if n else "those of" for n in (prefixes[0], before))
        raise UserError(
            f"the {rows} rows of {what} may be {first} {height} x {cells // height} patches, or {second} {side} x "
            f"{side}; {remedy}."
        )
    return before, side


def square(tokens: int, what: str) -> int:
    """Side of the square grid with ``tokens`` patches.

    Raises:
      UserError: it is none.
    """
    return grid(tokens, (0,), (), what)[1]


def stride(stem: tuple[int, ...] | None) -> int:
    """Pixels per cell of the grid that a ResNet stem with these stages makes; 1 without a stem."""
    return 1 if stem is None else 2 ** max(len(stem) + 1, 2)


def remainder(told: Any, size: int, patch: int) -> int:
    """Pixels of an image of ``told`` pixels that ``size``, whole patches, leaves out; 0 where it is of another grid."""
    return told - size if isinstance(told, int) and 0 <= told - size < patch else 0


def heads_of(width: int, depth: int, mlp_dim: int) -> tuple[int, str]:
    """Number of heads of a published ViT of this size, else one per 64 channels, and a note: weights never tell it."""
    for fields in architectures.VIT_SIZES.values():
        if (fields["width"], fields["depth"], fields["mlp_dim"]) == (width, depth, mlp_dim):
            return fields["heads"], f"{fields['heads']} heads are assumed, as in published models of this size"
    heads = max(1, width // 64)
    return heads, f"{heads} heads are assumed (one per 64 channels; no published model is {width} wide, {depth} deep)"


def check_images(preprocess: Any, source: str) -> None:
    """Raises a :class:`UserError` for a preparation of images that cannot be carried out, whoever described it."""
    size, crop, mean, std = preprocess.size, preprocess.crop, preprocess.mean, preprocess.std
    if not (MIN_CROP <= crop <= 1 / MIN_CROP):  # above 1 transformers fills up
        raise UserError(
            f"{source} crops images to {crop:g} of their side; a fraction of {MIN_CROP:g} to {1 / MIN_CROP:g} is read."
        )
    if not (1 <= size <= MAX_SIZE):
        raise UserError(f"{source} is of images of {size} px; sides of 1 to {MAX_SIZE:,} can be read.")
    if not all(math.isfinite(x) for x in (*mean, *std)) or min(std) <= 0:
        raise UserError(
            f"{source} normalises images by mean {mean} and deviation {std}; expected finite numbers, and a deviation "
            "above 0."
        )
