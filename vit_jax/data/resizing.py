"""Pillow's resizing, to the last bit, in vector instructions that Numba compiles: the extra ``fast``.

It is used only after it has given the installed Pillow's pixels: what is installed changes the speed of a run and
nothing else, so nothing in a configuration names it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data.framing import KERNELS, Picture
from vit_jax.io import extras

FILTERS = ("bilinear", "bicubic")
PACKAGE = "numba"
SMALLEST, LARGEST = 2**15, 2**24
"""Pixels of the images that this is for: below, there is nothing to gain; above, Pillow takes less memory."""

Taps = tuple[np.ndarray, np.ndarray]
_BITS = 22  # of Pillow's weights behind the point
_STRIP = 2**17  # bytes of an image that are turned at a time, and stay in a core's cache
_lock = threading.Lock()


class Pixels:
    """uint8[H, W, 3] with as much of a Pillow image as framing asks; ``blend`` is :func:`_blend`, compiled or not."""

    def __init__(self, pixels: np.ndarray, blend: Callable[..., None]):
        self._pixels, self._blend = pixels, blend

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self._pixels.shape[1], self._pixels.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._pixels, dtype, copy=copy)

    def crop(self, box: tuple[int, int, int, int]) -> Pixels:
        """The part from (left, top) to (right, bottom), which lies within the image."""
        left, top, right, bottom = box
        return Pixels(self._pixels[top:bottom, left:right], self._blend)

    def resize(self, size: tuple[int, int], resample: Image.Resampling, box: Any = None) -> Picture:
        """As Pillow's; by Pillow for a ``box``, and where the filter is none of :data:`FILTERS`."""
        found = _resized(self._pixels, size, resample.name.lower(), self._blend) if box is None else None
        if found is None:
            return Image.fromarray(self._pixels).resize(size, resample, box=box)
        return Pixels(found, self._blend)


def picture(image: Image.Image) -> Picture:
    """``image``, RGB, in a form that is resized sooner; itself where that is left to Pillow.

    The first call that is not left to it loads Numba: half a second, two where this machine has not compiled before.
    """
    if not SMALLEST <= image.width * image.height <= LARGEST or (blend := _kernel()) is None:
        return image
    return Pixels(np.asarray(image), blend)


def version() -> str:
    """``"numba 0.68.1"`` where it is installed, else an empty text."""
    try:
        return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def note() -> str:
    """What resizes, in a line."""
    if found := version():
        return f"{found} (Pillow's pixels)" if _kernel() else f"Pillow, although {found} is there"
    return f"Pillow; sooner, with the same pixels: {extras.command('fast')}"


def _kernel() -> Callable[..., None] | None:
    with _lock:
        return _loaded()


@functools.cache
def _loaded() -> Callable[..., None] | None:
    if not (found := version()):
        return None
    try:
        import numba

        lines = numba.types.Array(numba.uint8, 2, "C", readonly=True)  # or not: either can be given
        types = numba.void(lines, numba.int64[::1], numba.int32[:, ::1], numba.uint8[:, ::1])
        blend = numba.njit(types, nogil=True, cache=True, error_model="numpy")(_blend)
        wrong = "" if _equal(blend) else f"Pillow {Image.__version__} makes other pixels"
    except Exception as e:  # numba refuses a numpy that is newer than itself, or a disk where it may keep nothing
        wrong = (str(e) or repr(e)).splitlines()[0]
    if not wrong:
        return blend
    warnings.warn(f"Pillow resizes images, although {found} is there: {wrong}", stacklevel=2)
    return None


def _equal(blend: Callable[..., None]) -> bool:
    """Whether the installed Pillow makes the same pixels of a wide image and of a tall one, whose passes it swaps."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8))
    for size in ((131, 96), (72, 203)):
        image = noise.resize(size, Image.Resampling.BICUBIC)
        for kind in (Image.Resampling[name.upper()] for name in FILTERS):
            ours = Pixels(np.asarray(image), blend).resize((50, 48), kind)
            if not np.array_equal(np.asarray(ours), np.asarray(image.resize((50, 48), kind))):
                return False
    return True


def _resized(
    pixels: np.ndarray, size: tuple[int, int], interpolation: str, blend: Callable[..., None]
) -> np.ndarray | None:
    """uint8[H, W, 3] to ``size`` (width, height) by Pillow's integers, in Pillow's order of the two directions."""
    (height, width, _), (new_width, new_height) = pixels.shape, size
    if interpolation not in FILTERS or min(width, height, *size) < 1:
        return None
    across, down = _taps(width, new_width, interpolation), _taps(height, new_height, interpolation)
    if across is None or down is None:
        return None
    rows_first = height > new_height and height - new_height > 2 * (width - new_width)
    if not rows_first and new_width != width:
        pixels = _across(pixels, across, blend)
    if new_height != height:
        lines = np.ascontiguousarray(pixels).reshape(height, -1)
        out = np.empty((new_height, lines.shape[1]), np.uint8)
        blend(lines, *down, out)
        pixels = out.reshape(new_height, -1, 3)
    if rows_first and new_width != width:
        pixels = _across(pixels, across, blend)
    return pixels


def _across(pixels: np.ndarray, taps: Taps, blend: Callable[..., None]) -> np.ndarray:
    """uint8[H, W, 3] to uint8[H, new W, 3]: turned, so that columns are the lines that are blended, and turned back."""
    height, width, _ = pixels.shape
    new = len(taps[0])
    out = np.empty((height, 3 * new), np.uint8)
    flat = pixels.reshape(height, 3 * width)
    rows = max(1, _STRIP // (3 * width))
    for start in range(0, height, rows):
        part = flat[start : start + rows]
        blended = np.empty((new, 3 * len(part)), np.uint8)
        blend(np.ascontiguousarray(part.T).reshape(width, -1), *taps, blended)
        out[start : start + rows] = blended.reshape(3 * new, -1).T
    return out.reshape(height, new, 3)


@functools.lru_cache(4096)
def _taps(old: int, new: int, interpolation: str) -> Taps | None:
    """int64[new] first line and int32[new, 4n] weights of the lines from there on; None where there are fewer lines."""
    kernel, reach = KERNELS[interpolation]
    scale = old / new
    wide = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    first, last = ((centres + end * reach * wide + 0.5).clip(0, old).astype(np.int64)[:, None] for end in (-1, 1))
    places = np.arange((last - first).max())
    taps = -(-len(places) // 4) * 4
    if taps > old:
        return None
    weights = kernel(np.abs((first + places - centres[:, None] + 0.5) * (1 / wide)))
    weights = np.where(places < last - first, weights, 0.0)
    weights /= weights.cumsum(axis=1)[:, -1:]  # one after the other, as Pillow adds
    start = np.minimum(first, old - taps)
    out = np.zeros((new, taps + len(places)), np.int32)
    np.put_along_axis(out, first - start + places, np.trunc(weights * 2**_BITS + np.copysign(0.5, weights)), axis=1)
    return start[:, 0], np.ascontiguousarray(out[:, :taps])


def _blend(lines: np.ndarray, first: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """Line i of ``out`` uint8[N, M] is the sum of ``weights[i]`` int32[4n] times the ``lines`` from ``first[i]`` on.

    Four at a time and M numbers side by side: that is what a compiler makes vector instructions of.
    """
    many = lines.shape[1]
    total = np.empty(many, np.int32)
    for i in range(len(out)):
        total[:] = 1 << 21
        for k in range(0, weights.shape[1], 4):
            at = first[i] + k
            a, b, c, d = weights[i, k], weights[i, k + 1], weights[i, k + 2], weights[i, k + 3]
            p, q, r, s = lines[at], lines[at + 1], lines[at + 2], lines[at + 3]
            for j in range(many):
                total[j] += np.int32(a * np.int32(p[j]) + b * np.int32(q[j]) + c * np.int32(r[j]) + d * np.int32(s[j]))
        for j in range(many):
            out[i, j] = np.uint8(min(max(total[j] >> 22, 0), 255))
