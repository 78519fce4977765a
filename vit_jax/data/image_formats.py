"""Which decoder reads an encoded image: by its content, whatever its name says.

Not ``Image.open``: it warns of bombs through process-wide state, and tries forty formats.
"""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from vit_jax.io.extras import needed

JPEG = JpegImagePlugin.JpegImageFile
Opener = Callable[[io.BytesIO], Image.Image]


def _avif(file: io.BytesIO) -> Image.Image:
    try:
        from PIL import AvifImagePlugin
    except ImportError:
        raise ValueError("AVIF needs Pillow 11.3; run: pip install --upgrade pillow") from None
    return AvifImagePlugin.AvifImageFile(file)


def _heic(file: io.BytesIO) -> Image.Image:
    with needed("HEIC", "heic"):
        import pillow_heif
    pillow_heif.register_heif_opener()
    return Image.open(file, formats=["HEIF"])


_MAGIC: tuple[tuple[int, bytes, Opener], ...] = (
    (0, b"\xff\xd8", JPEG),
    (0, b"\x89PNG", PngImagePlugin.PngImageFile),
    (8, b"WEBP", WebPImagePlugin.WebPImageFile),  # in RIFF
    (0, b"BM", BmpImagePlugin.BmpImageFile),
    (0, b"GIF8", GifImagePlugin.GifImageFile),
    (0, b"II*\0", TiffImagePlugin.TiffImageFile),
    (0, b"MM\0*", TiffImagePlugin.TiffImageFile),
    (4, b"ftypavif", _avif),
    (4, b"ftypavis", _avif),
    (4, b"ftyphei", _heic),
    (4, b"ftyphev", _heic),
    (4, b"ftypmif1", _heic),
    (4, b"ftypmsf1", _heic),
    (4, b"jP  \r\n\x87\n", Jpeg2KImagePlugin.Jpeg2KImageFile),
    (0, b"\xff\x4f\xff\x51", Jpeg2KImagePlugin.Jpeg2KImageFile),
    *((0, b"P%d" % kind, PpmImagePlugin.PpmImageFile) for kind in range(1, 7)),
    (0, b"\x28\0\0\0", BmpImagePlugin.DibImageFile),
)


def opened(data: bytes) -> Image.Image:
    """The image, its header read; of several frames the first.

    Raises:
      ValueError: it is of no known format, or one that takes a package which is not there.
      Exception: decoders fail in many ways.
    """
    for at, magic, decoder in _MAGIC:
        if data[at : at + len(magic)] == magic:
            return decoder(io.BytesIO(data))
    known = "JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF, HEIC, JPEG 2000 nor PPM"
    raise ValueError(f"neither {known}" if data else "0 bytes")


_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


def without_texts(data: bytes) -> bytes | None:
    """A PNG without what is written about it: texts and colour profile; None for another file, or where there is none.

    Pillow refuses a whole picture for a large text.
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return None
    kept, at = [data[:8]], 8
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in _TEXTS:
            kept.append(data[at:end])
        at = end
    found = b"".join(kept)
    return found if len(found) < len(data) else None
