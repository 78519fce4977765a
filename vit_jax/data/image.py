"""Encoded images to fixed uint8 squares, on the host: everything random happens later, on the device."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vit_jax.data import resizing
from vit_jax.data.framing import Framing, Picture
from vit_jax.data.image_formats import JPEG, opened, without_texts
from vit_jax.data.sources.base import Record, Unreadable

MAX_PIXELS = 2**26
"""An image with more pixels is refused from its header, unless told otherwise: 67 megapixels decode to 270 MB."""
_MANY_PIXELS = 2**24
_large = threading.RLock()
"""Images of more than :data:`_MANY_PIXELS` are decoded one at a time: each may take a gigabyte."""

_ORIENTATION = 0x0112
_EXIF = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_TURNS = dict(
    zip(
        range(2, 9),
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ),
        strict=True,
    )
)


def decode(
    record: Record, canvas: int, frame: Framing, max_pixels: int = MAX_PIXELS, fast: bool = False
) -> tuple[np.ndarray, tuple[int, int]]:
    """The image of ``record`` on a square canvas.

    Args:
      record: an example with its ``image``, encoded bytes or uint8[H,W,3], and its ``name`` for errors.
      canvas: side of the square in pixels.
      frame: how the image becomes that square.
      max_pixels: an image with more is refused, but for a JPEG, which can be decoded at a fraction of its size.
      fast: whether to load :mod:`vit_jax.data.resizing` for it, which pays for itself over a thousand images.

    Returns:
      uint8[canvas, canvas, 3] in RGB and the upright original's (height, width); see :meth:`.framing.Framing.told`.

    Raises:
      Unreadable: (a UserError) the image is truncated, of an unknown format or larger than ``max_pixels``.
    """
    with upright(record, canvas, frame, max_pixels, fast) as (image, size):
        return np.asarray(frame(image, canvas)), frame.told(image, size, canvas)


@contextlib.contextmanager
def upright(
    record: Record, canvas: int, frame: Framing, max_pixels: int = MAX_PIXELS, fast: bool = False
) -> Iterator[tuple[Picture, tuple[int, int]]]:
    """What :func:`decode` makes a canvas of, with its arguments: decoded, RGB and upright; and its (height, width)."""
    draft = 2 * canvas if frame.draft else None  # twice: what remains to be resized is antialiased as usual
    with contextlib.ExitStack() as stack:
        image, size = _open(record, draft, 2 * canvas, max_pixels, stack)
        yield resizing.picture(image) if fast else image, size


def _open(
    record: Record, draft: int | None, least: int, max_pixels: int, stack: contextlib.ExitStack
) -> tuple[Image.Image, tuple[int, int]]:
    """RGB and upright; ``draft`` allows JPEG to decode at a fraction of its size, no smaller than that many pixels.

    A JPEG that is too large is drafted in any case, no smaller than ``least``. ``stack`` holds what has to be let go
    once the image is not needed any more.
    """
    data, name = record["image"], record["name"]
    if isinstance(data, np.ndarray):
        return _from_array(data, name)
    try:
        size = _plain_jpeg(data)
        if size and (draft is None or min(size) < 2 * draft) and size[0] * size[1] <= max_pixels:
            if size[0] * size[1] > _MANY_PIXELS:
                stack.enter_context(_large)
            return Image.frombytes("RGB", size, data, "jpeg", "RGB", ""), (size[1], size[0])
        try:
            return _decoded(data, draft, least, max_pixels, stack)
        except Unreadable:
            raise
        except Exception:
            if (picture := without_texts(data)) is None:
                raise
            return _decoded(picture, draft, least, max_pixels, stack)
    except Unreadable as e:
        raise Unreadable(f"the image {name} has {e}") from None
    except Exception as e:  # decoders fail in many ways; each of them means that this file is unreadable
        raise Unreadable(f"the image {name} is unreadable or truncated ({str(e) or type(e).__name__})") from None


def _decoded(
    data: bytes, draft: int | None, least: int, max_pixels: int, stack: contextlib.ExitStack
) -> tuple[Image.Image, tuple[int, int]]:
    """Raises :class:`Unreadable` with the middle of a sentence where there are too many pixels."""
    image = opened(data)
    width, height = image.size
    if width * height > _MANY_PIXELS:
        stack.enter_context(_large)
    if isinstance(image, JPEG) and (draft is not None or width * height > max_pixels):
        most = max_pixels * (2 if image.info.get("progressive") else 8)  # which is decoded as a whole
        if width * height <= most:
            image.draft(None, (draft or least,) * 2)
    if image.size[0] * image.size[1] > max_pixels:
        raise Unreadable(
            f"{width} x {height} pixels, more than {max_pixels:,} (a decompression bomb? if not, raise max_pixels)"
        )
    drafted = image.size != (width, height)
    image.load()
    if not drafted:
        width, height = image.size
    orientation = _orientation(image)
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    return _rgb(image), (width, height) if orientation >= 5 else (height, width)


def _orientation(image: Image.Image) -> int:
    """As EXIF or XMP say, 1 where they say nothing that can be read."""
    if not any(key in image.info for key in _EXIF):
        return 1
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a picture is not unreadable because of what is written about it
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a three-channel JPEG without EXIF or XMP, else None.

    Such files, most of a data set, go to the decoder at once: PIL's parsing of a header costs more than a small image.
    """
    at = 2
    while data[:2] == b"\xff\xd8" and len(data) > at + 9 and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xC0, 0xC1, 0xC2):  # start of frame: precision, height, width, channels
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            return (width, height) if (data[at + 4], data[at + 9]) == (8, 3) and width and height else None
        if marker == 0xE1 or not 0xC4 <= marker <= 0xFE or 0xD0 <= marker <= 0xD9:
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _from_array(data: np.ndarray, name: str) -> tuple[Image.Image, tuple[int, int]]:
    if data.dtype != np.uint8 or data.ndim not in (2, 3) or data.shape[2:] not in ((), (1,), (3,), (4,)):
        raise Unreadable(f"the image {name} is {data.dtype}{list(data.shape)}; expected uint8[H, W, 1, 3 or 4].")
    if data.shape[2:] == (1,):
        data = data[..., 0]
    return _rgb(Image.fromarray(data)), data.shape[:2]


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: transparency over white, 16-bit grey scaled to 8."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        grey = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
