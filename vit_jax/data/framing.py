"""How an image of any shape becomes a square: resized, then cut or filled up.

Projects agree on this to a pixel with themselves alone: what is seen, the filter, which way sides and offsets are
rounded. A :class:`Framing` says all of it, so that weights see the pixels that they were trained for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image

from vit_jax.checks import Checked, Range

LARGEST = 2**26
"""A resized image with more pixels is made in that part alone that is seen."""

Mode = Literal["center", "squash", "pad", "patches"]
Filter = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming", "bilinear_plain"]
"""Pillow's, antialiased but for ``"nearest"``; ``"bilinear_plain"`` is that of ``tf.image.resize``, not antialiased."""
Byte = Annotated[int, Range(0, 255)]
Rounding = Literal["vit_jax", "torchvision", "transformers"]


class Picture(Protocol):
    """What framing asks of an image in RGB: Pillow's can do it, and :class:`vit_jax.data.resizing.Pixels`."""

    @property
    def size(self) -> tuple[int, int]: ...

    def crop(self, box: tuple[int, int, int, int]) -> Picture: ...

    def resize(self, size: tuple[int, int], resample: Any, box: Any = None) -> Picture: ...


class Rounds(NamedTuple):
    """Which way a project rounds.

    Attributes:
      side: of the resized long side, a number of pixels.
      offset: of the place of the cut, half of the pixels that are left out.
      torch: whether PyTorch resizes, rows before columns with weights of 16 bits, or Pillow, which begins where that
        saves work: up to 8 grey levels where overshoot is cut off in between.
    """

    side: Callable[[float], int]
    offset: Callable[[float], int]
    torch: bool = False


ROUNDINGS: dict[str, Rounds] = {
    "vit_jax": Rounds(round, math.floor),
    "torchvision": Rounds(int, round),
    "transformers": Rounds(int, math.floor, torch=True),
}
"""By :attr:`Framing.rounding`; timm and open_clip, which hand Pillow's images to torchvision, are torchvision's."""


@dataclasses.dataclass(frozen=True)
class Framing(Checked):
    """How the host makes a square canvas of an image.

    Attributes:
      mode: what is seen: ``"center"`` the central square, ``"squash"`` the whole image, made square, ``"pad"`` the
        whole image in its own shape, centred on ``fill``, ``"patches"`` the whole image as nearly in its own shape as
        whole patches can be, which lie on the canvas one after the other.
      edge: pixels that the short side (``"squash"``: both, ``"pad"``: the long side) is resized to, before the canvas
        is cut out of the centre; of ``"patches"`` the side of a square of as many as there may be; None is the canvas.
      interpolation: filter of that resizing.
      rounding: whose way of rounding sides and offsets, a name in :data:`ROUNDINGS`; of squares none differs by more
        than the place of an odd cut.
      rest: columns at the right and rows at the bottom of the cut that are left out, as a convolution leaves out what
        is no whole patch.
      fill: colour beside a padded image.
      patch: side of ``"patches"`` in pixels.
      draft: whether a JPEG may be decoded at a fraction of its size, no smaller than twice the canvas.
    """

    mode: Mode = "center"
    edge: Annotated[int, Range(1, 2**14)] | None = None
    interpolation: Filter = "bicubic"
    rounding: Rounding = "vit_jax"
    rest: Annotated[int, Range(0, 1024)] = 0
    fill: tuple[Byte, Byte, Byte] = (0, 0, 0)
    draft: bool = False
    patch: Annotated[int, Range(1, 1024)] = 16

    def __call__(self, image: Picture, canvas: int) -> Picture:
        """``image``, RGB, as a square of ``canvas`` pixels."""
        if self.mode == "patches":
            return self._patches(image, canvas)
        cut = canvas + self.rest
        size = self.resized(image.size, self.edge or cut)
        left, top = (self._offset(side - cut) for side in size)
        if size[0] * size[1] > LARGEST:  # a ribbon
            x, y = (old / new for old, new in zip(image.size, size, strict=True))
            box = (left * x, top * y, (left + canvas) * x, (top + canvas) * y)
            return image.resize((canvas, canvas), _PILLOW.get(self.interpolation, Image.Resampling.BILINEAR), box=box)
        image = _resize(image, size, self.interpolation, ROUNDINGS[self.rounding].torch)
        if size == (canvas, canvas) and not self.rest:
            return image
        if min(size) < cut:
            square = Image.new("RGB", (canvas, canvas), self.fill)
            square.paste(Image.fromarray(np.asarray(image)), (-left, -top))
            return square
        return image.crop((left, top, left + canvas, top + canvas))

    def resized(self, size: tuple[int, int], edge: int) -> tuple[int, int]:
        """Width and height of an image of ``size`` (width, height) after resizing, before the cut."""
        if self.mode == "squash":
            return edge, edge
        width, height = size
        if self.mode == "patches":
            rows, columns = patch_grid(height, width, self.patch, (edge // self.patch) ** 2)
            return columns * self.patch, rows * self.patch
        if self.mode == "pad":
            ratio = max(width, height) / edge
            return max(1, round(width / ratio)), max(1, round(height / ratio))
        side, short = ROUNDINGS[self.rounding].side, min(width, height)
        return (
            edge if width == short else side(edge * width / short),
            edge if height == short else side(edge * height / short),
        )

    def told(self, image: Picture, original: tuple[int, int], canvas: int) -> tuple[int, int]:
        """(height, width) that goes with the canvas of ``image``: of the ``original``, or of what is cut in patches."""
        return self.resized(image.size, self.edge or canvas)[::-1] if self.mode == "patches" else original

    def _patches(self, image: Picture, canvas: int) -> Image.Image:
        size, p, side = self.resized(image.size, self.edge or canvas), self.patch, canvas // self.patch
        pixels = np.asarray(_resize(image, size, self.interpolation, ROUNDINGS[self.rounding].torch))
        tiles = np.zeros((side * side, p, p, 3), np.uint8)
        found = pixels.reshape(size[1] // p, p, size[0] // p, p, 3).swapaxes(1, 2).reshape(-1, p, p, 3)
        tiles[: len(found)] = found
        whole = tiles.reshape(side, side, p, p, 3).swapaxes(1, 2).reshape(side * p, side * p, 3)
        return Image.fromarray(np.pad(whole, ((0, canvas - side * p), (0, canvas - side * p), (0, 0))))

    def _offset(self, left_out: int) -> int:
        """Pixels before the cut; negative, before the image, where it is smaller."""
        return ROUNDINGS[self.rounding].offset(left_out / 2) if left_out >= 0 else -(-left_out // 2)


def patch_grid(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """Rows and columns of whole patches that an image is resized to: as large as ``most`` of them allow, at least one.

    NaFlex of SigLIP 2: found by bisection to 1e-5 of a scale of 100 at most, as ``get_image_size_for_max_num_patches``
    of transformers and ``ops_naflex.py`` of big_vision do.
    """
    low, high = 1e-6, 100.0
    grid = lambda scale: tuple(max(1, math.ceil(side * scale / patch)) for side in (height, width))  # noqa: E731
    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(grid(middle)) <= most else (low, middle)
    rows, columns = grid(low)
    return rows, columns


class Framed(NamedTuple):
    """An image whose patches lie on a canvas, or several.

    Attributes:
      image: uint8 ``[K, K, 3]``.
      size: int32 ``[2]``, height and width in pixels of what was cut in patches.
    """

    image: np.ndarray
    size: np.ndarray


CENTER = Framing()
"""Of runs in evaluation, where they do not say otherwise."""
TRAINING = Framing("squash", draft=True)
"""Of training: the whole image, whose aspect ratio the device restores."""

_PILLOW = {name.lower(): filters for name, filters in Image.Resampling.__members__.items()}


def _resize(image: Picture, size: tuple[int, int], interpolation: Filter, torch: bool) -> Picture:
    """``image`` itself where it has that ``size`` (width, height); by PyTorch's arithmetic with ``torch``."""
    if image.size == size:
        return image
    if interpolation == "bilinear_plain":
        return _plain(image, size)
    if not (torch and interpolation in KERNELS):
        return image.resize(size, _PILLOW[interpolation])
    pixels = np.asarray(image)
    for axis, new in ((1, size[0]), (0, size[1])):
        pixels = _sixteen_bits(pixels, axis, new, *KERNELS[interpolation])
    return Image.fromarray(pixels)


def _hat(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - x, 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


KERNELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "bilinear": (_hat, 1), "bicubic": (_cubic, 2), "lanczos": (_lanczos, 3),
}  # fmt: skip
"""Distance in pixels -> weight, and from where on it is 0."""


_SLAB = 256
"""Lines at a time, so that a large photograph takes little more memory than it has."""


def _sixteen_bits(
    pixels: np.ndarray, axis: int, new: int, kernel: Callable[[np.ndarray], np.ndarray], reach: int
) -> np.ndarray:
    """One pass over uint8[H,W,3] as PyTorch does it on a CPU: weights are integers of 16 bits, results of 8."""
    old = pixels.shape[axis]
    if new == old:
        return pixels
    scale = old / new
    wide = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    taps = np.arange(old)
    first, last = ((centres + end * reach * wide + 0.5).clip(0, old).astype(int)[:, None] for end in (-1, 1))
    weights = np.where((taps >= first) & (taps < last), kernel(np.abs(taps + 0.5 - centres[:, None]) / wide), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    bits = next(b for b in range(22, 0, -1) if int(0.5 + weights.max() * 2**b) < 2**15)
    whole = np.trunc(weights * 2**bits + np.copysign(0.5, weights))
    whole = whole.astype(np.float32)
    pixels = np.moveaxis(pixels, axis, 0)
    out = np.empty((new, *pixels.shape[1:]), np.uint8)
    for start in range(0, out.shape[1], _SLAB):
        part = pixels[:, start : start + _SLAB]
        sums = (whole @ part.reshape(old, -1).astype(np.float32)).reshape(new, *part.shape[1:])
        out[:, start : start + _SLAB] = np.floor((sums + 2 ** (bits - 1)) * 2.0**-bits).clip(0, 255)
    return np.moveaxis(out, 0, axis)


def _plain(image: Picture, size: tuple[int, int]) -> Image.Image:
    """The four nearest pixels blended, as ``tf.image.resize(method="bilinear", antialias=False)``."""
    pixels = np.asarray(image)
    for axis, new in ((0, size[1]), (1, size[0])):
        old = pixels.shape[axis]
        place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
        low = np.floor(place).astype(np.int64)
        share = (place - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        near, far = (pixels.take(i, axis).astype(np.float32) for i in (low, np.minimum(low + 1, old - 1)))
        pixels = near + share * (far - near)
    return Image.fromarray(np.round(pixels).astype(np.uint8))
