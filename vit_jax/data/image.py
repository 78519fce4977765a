"""Encoded images to fixed uint8 squares, on the host: everything random happens later, on the device."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import BmpImagePlugin, Image, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from vit_jax.data.sources.base import Record, Unreadable

MAX_PIXELS = 2**26
"""An image with more pixels is refused from its header: 67 megapixels decode to 200 MB."""

ResizeMode = Literal["squash", "center"]

_ORIENTATION = 0x0112
_EXIF = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def decode(record: Record, canvas: int, resize_mode: ResizeMode) -> tuple[np.ndarray, tuple[int, int]]:
    """The image of ``record`` on a square canvas.

    Args:
      record: an example with its ``image``, encoded bytes or uint8[H,W,3], and its ``name`` for errors.
      canvas: side of the square in pixels.
      resize_mode: ``"squash"`` resizes the whole image to the square (the size returned restores its aspect ratio);
        ``"center"`` resizes the short side to the canvas and takes the central square, equal to PIL's resize and crop.
        Both are antialiased bicubic; an image that already fits is not resampled.

    Returns:
      uint8[canvas, canvas, 3] in RGB and the upright original's (height, width).

    Raises:
      Unreadable: (a UserError) the image is truncated, of an unknown format or larger than :data:`MAX_PIXELS`.
    """
    draft = 2 * canvas if resize_mode == "squash" else None  # twice: what remains to be resized is antialiased as usual
    image, size = _open(record, draft)
    return np.asarray(_fit(image, canvas, resize_mode)), size


def _open(record: Record, draft: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """RGB and upright; ``draft`` allows JPEG to decode at a fraction of its size, no smaller than that many pixels."""
    data, name = record["image"], record["name"]
    if isinstance(data, np.ndarray):
        return _from_array(data, name)
    try:
        size = _plain_jpeg(data)
        if size and (draft is None or min(size) < 2 * draft):
            width, height = size
            if width * height <= MAX_PIXELS:
                return Image.frombytes("RGB", size, data, "jpeg", "RGB", ""), (height, width)
        else:
            image = _plugin(data)(io.BytesIO(data))
            width, height = image.size
            if width * height <= MAX_PIXELS:
                return _load(image, draft)
    except Exception as e:  # decoders fail in many ways; each of them means that this file is unreadable
        raise Unreadable(f"the image {name} is unreadable or truncated ({str(e) or type(e).__name__})") from None
    raise Unreadable(
        f"the image {name} has {width} x {height} pixels, more than {MAX_PIXELS:,} (a decompression bomb?)"
    )


def _load(image: Image.Image, draft: int | None) -> tuple[Image.Image, tuple[int, int]]:
    width, height = image.size
    if draft is not None:
        image.draft(None, (draft, draft))
    image.load()
    if any(key in image.info for key in _EXIF):
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
        image = ImageOps.exif_transpose(image)
        width, height = (height, width) if turned else (width, height)
    return _rgb(image), (height, width)


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


def _plugin(data: bytes) -> Callable[[io.BytesIO], Image.Image]:
    """The decoder by content. Not ``Image.open``: it warns of bombs through process-wide state and knows 40 formats."""
    if data[:2] == b"\xff\xd8":
        return JpegImagePlugin.JpegImageFile
    if data[:4] == b"\x89PNG":
        return PngImagePlugin.PngImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if data[:2] == b"BM":
        return BmpImagePlugin.BmpImageFile
    raise ValueError("0 bytes" if not data else "neither JPEG, PNG, WebP nor BMP")


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
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _fit(image: Image.Image, canvas: int, resize_mode: ResizeMode) -> Image.Image:
    if image.size == (canvas, canvas):
        return image
    if resize_mode == "squash":
        return image.resize((canvas, canvas), Image.Resampling.BICUBIC)
    width, height = image.size
    short = min(width, height)
    new_w, new_h = round(width * canvas / short), round(height * canvas / short)
    left, top = (new_w - canvas) // 2, (new_h - canvas) // 2
    if new_w * new_h > MAX_PIXELS:  # a ribbon: resize only the part that will be seen
        x, y = width / new_w, height / new_h
        box = (left * x, top * y, (left + canvas) * x, (top + canvas) * y)
        return image.resize((canvas, canvas), Image.Resampling.BICUBIC, box=box)
    return image.resize((new_w, new_h), Image.Resampling.BICUBIC).crop((left, top, left + canvas, top + canvas))
