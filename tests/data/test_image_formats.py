"""Formats are told by content."""

import builtins

import numpy as np
import pytest
from PIL import Image, features

from tests.data.helpers import encode, random_image
from vit_jax.data import image_formats
from vit_jax.data.framing import CENTER, TRAINING
from vit_jax.data.image import decode
from vit_jax.data.sources.base import Unreadable


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "DIB"])
def test_other_formats(rng, kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    pixels = random_image(rng, 40, 48)
    data = encode(pixels, kind)
    image, size = decode({"image": data, "label": 0, "name": "x.jpg"}, 40, CENTER)
    assert size == (40, 48) and np.abs(image.astype(int) - pixels[:, 4:44]).max() <= (90 if kind == "GIF" else 40)


def test_the_first_of_several_frames(rng):
    frames = [Image.fromarray(np.full((4, 5, 3), value, np.uint8)) for value in (10, 200)]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        image, _ = decode({"image": data, "label": 0, "name": "x"}, 4, CENTER)
        assert np.unique(image).tolist() == [10]


def test_modes_of_tiff(rng):
    grey = rng.integers(0, 65536, (4, 5), np.uint16)
    image, _ = decode({"image": encode(Image.fromarray(grey), "TIFF"), "label": 0, "name": "x"}, 4, TRAINING)
    assert image.shape == (4, 4, 3)
    for mode in ("L", "1", "CMYK", "LA", "RGBA", "P", "F"):
        data = encode(Image.fromarray(random_image(rng, 4, 5)).convert(mode), "TIFF")
        assert decode({"image": data, "label": 0, "name": "x"}, 4, TRAINING)[1] == (4, 5)


def test_heic_says_which_package_reads_it(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pillow_heif":
            raise ImportError
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Unreadable, match=r"x is unreadable .*HEIC takes the extra 'heic' .*: pip install"):
        decode({"image": b"\0\0\0\x18ftypheic" + bytes(20), "label": 0, "name": "x"}, 4, CENTER)


def test_what_is_none():
    for data in (b"", b"hello", b"%PDF", b"<svg>", bytes(40)):
        with pytest.raises(ValueError, match=r"0 bytes|neither JPEG"):
            image_formats.opened(data)
    assert image_formats.without_texts(b"\xff\xd8") is None
    assert image_formats.without_texts(encode(np.zeros((2, 2, 3), np.uint8), "PNG")) is None
