import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.helpers import encode, random_image
from vit_jax.data import framing
from vit_jax.data import image as module
from vit_jax.data.framing import CENTER, TRAINING
from vit_jax.data.image import decode
from vit_jax.data.sources.base import Unreadable

BICUBIC = Image.Resampling.BICUBIC


def record(image):
    return {"image": image, "label": 0, "name": "a.jpg"}


def opened(data, max_pixels=module.MAX_PIXELS):
    return module._open(record(data), None, 1, max_pixels, contextlib.ExitStack())


def reference(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    canvas=st.integers(1, 48),
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]),
)
def test_center_equals_pil_resize_and_crop(height, width, canvas, kind):
    data = encode(random_image(np.random.default_rng(height), height, width), kind)
    image, size = decode(record(data), canvas, CENTER)
    new_w, new_h = (round(v * canvas / min(width, height)) for v in (width, height))
    left, top = (new_w - canvas) // 2, (new_h - canvas) // 2
    whole = reference(data)
    whole = whole.resize((new_w, new_h), BICUBIC) if whole.size != (new_w, new_h) else whole
    assert np.array_equal(image, np.asarray(whole.crop((left, top, left + canvas, top + canvas))))
    assert image.dtype == np.uint8 and image.shape == (canvas, canvas, 3) and size == (height, width)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 47), width=st.integers(1, 47), kind=st.sampled_from(["JPEG", "PNG"]))
def test_squash_equals_pil_resize(height, width, kind):
    data = encode(random_image(np.random.default_rng(width), height, width), kind)
    image, size = decode(record(data), 24, TRAINING)
    assert np.array_equal(image, np.asarray(reference(data).resize((24, 24), BICUBIC))) and size == (height, width)


def test_squash_of_a_large_jpeg_uses_its_reduced_decoding(rng):
    data = encode(random_image(rng, 401, 322))
    image, size = decode(record(data), 40, TRAINING)
    full = np.asarray(reference(data).resize((40, 40), BICUBIC))
    assert size == (401, 322) and np.abs(image.astype(int) - full).mean() < 2
    assert np.array_equal(image, decode(record(data), 40, TRAINING)[0])


def test_fitting_images_are_not_resampled(rng):
    pixels = rng.integers(0, 256, (13, 13, 3), np.uint8)
    for source in (pixels, encode(pixels, "PNG")):
        assert np.array_equal(decode(record(source), 13, TRAINING)[0], pixels)
        assert np.array_equal(decode(record(source), 13, CENTER)[0], pixels)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 100}, {"comment": b"x" * 99}]
)
def test_the_short_way_through_the_jpeg_decoder_gives_the_same_pixels(rng, options):
    data = encode(random_image(rng, 37, 51), **options)
    assert module._plain_jpeg(data) == (51, 37)
    assert np.array_equal(np.asarray(opened(data)[0]), np.asarray(reference(data)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(rng, orientation, kind):
    """The EXIF table: rows and columns of the upright image, as flips and transposes of the stored one."""
    stored = random_image(rng, 16, 32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    upright = [
        stored,
        stored[:, ::-1],
        stored[::-1, ::-1],
        stored[::-1],
        stored.transpose(1, 0, 2),
        stored[::-1].transpose(1, 0, 2),
        stored[::-1, ::-1].transpose(1, 0, 2),
        stored[:, ::-1].transpose(1, 0, 2),
    ][orientation - 1]
    image, size = opened(encode(stored, kind, exif=exif, **options))
    assert size == upright.shape[:2]
    assert np.abs(np.asarray(image).astype(int) - upright).max() <= (8 if kind == "JPEG" else 0)


def test_transparency_goes_over_white():
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = (200, 100, 50, 255)
    pixels[3] = (0, 0, 0, 51)  # a fifth of black
    image, _ = decode(record(encode(pixels, "PNG")), 4, TRAINING)
    assert image[0, 0].tolist() == [200, 100, 50]
    assert image[2, 0].tolist() == [255, 255, 255]
    assert image[3, 0].tolist() == [204, 204, 204]


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    plain, _ = opened(encode(image, "PNG"))
    clear, _ = opened(encode(image, "PNG", transparency=1))
    assert np.asarray(plain).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert np.asarray(clear).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_sixteen_bit_grey():
    grey = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    image, _ = opened(encode(Image.fromarray(grey), "PNG"))
    assert np.asarray(image)[0, :, 0].tolist() == np.rint(grey[0] / 257).tolist() == [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_other_modes_equal_pil(rng, mode):
    image = Image.fromarray(random_image(rng, 8, 8)).convert(mode)
    data = encode(image, "PNG" if mode == "1" else "JPEG")
    assert np.array_equal(decode(record(data), 8, CENTER)[0], np.asarray(reference(data)))


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3), (5, 6, 4)])
def test_arrays(rng, shape):
    pixels = rng.integers(0, 256, shape, np.uint8)
    if shape[2:] == (4,):
        pixels[..., 3] = 255
    image, size = decode(record(pixels), 7, TRAINING)
    rgb = np.broadcast_to(pixels.reshape(5, 6, -1)[..., :3], (5, 6, 3))
    assert size == (5, 6)
    assert np.array_equal(image, np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).resize((7, 7), BICUBIC)))


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)])
def test_other_arrays_are_refused(bad):
    with pytest.raises(Unreadable, match=r"expected uint8\[H, W, 1, 3 or 4\]"):
        decode(record(bad), 4, TRAINING)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_truncated_or_corrupt_files_are_named(rng, kind):
    data = encode(random_image(rng, 40, 40), kind)
    for broken in (b"", data[:3], data[: len(data) // 2], data[:-20] if kind != "PNG" else data[:-30], b"hello" * 9):
        for canvas in (8, 64):
            with pytest.raises(Unreadable, match=r"the image a\.jpg is unreadable or truncated"):
                decode(record(broken), canvas, TRAINING)


@settings(max_examples=100, deadline=None)
@given(position=st.integers(2, 600), value=st.integers(0, 255), kind=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]))
def test_a_damaged_byte_gives_an_image_or_our_error(position, value, kind):
    data = bytearray(encode(random_image(np.random.default_rng(1), 20, 20), kind))
    data[position % len(data)] = value
    try:
        assert decode(record(bytes(data)), 8, TRAINING)[0].shape == (8, 8, 3)
    except Unreadable as e:
        assert "a.jpg" in str(e)


def bomb(kind: str, side: int = 20_000) -> bytes:
    if kind == "PNG":
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
        parts = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    data = bytearray(encode(np.zeros((8, 8, 3), np.uint8)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


@pytest.mark.parametrize(("kind", "side"), [("PNG", 9_000), ("PNG", 10_000), ("PNG", 20_000), ("JPEG", 25_000)])
@pytest.mark.parametrize("fit", [TRAINING, CENTER])
def test_bombs_are_refused_from_the_header(kind, side, fit):
    """PIL is silent, warns and raises."""
    with pytest.raises(Unreadable, match=f"the image a.jpg has {side} x {side} pixels.*bomb.* raise max_pixels"):
        decode(record(bomb(kind, side)), 8, fit)


@pytest.mark.parametrize("fit", [TRAINING, CENTER])
def test_a_jpeg_of_too_many_pixels_is_decoded_at_a_fraction_of_them(rng, fit):
    pixels = random_image(rng, 300, 400)
    large = encode(pixels, quality=95)
    image, size = decode(record(large), 20, fit, 20_000)
    assert size == (300, 400)
    assert np.abs(image.astype(int) - decode(record(pixels), 20, fit)[0]).max() <= 12
    with pytest.raises(Unreadable, match="400 x 300 pixels, more than 10,000"):
        decode(record(encode(pixels, progressive=True)), 20, fit, 10_000)  # is kept whole in memory, so less is allowed
    with pytest.raises(Unreadable, match="more than 20,000"):
        decode(record(encode(pixels, "PNG")), 20, fit, 20_000)
    assert decode(record(encode(pixels, "PNG")), 20, fit, 120_000)[1] == (300, 400)


@pytest.mark.parametrize("chunk", [b"zTXt", b"iTXt", b"tEXt", b"iCCP"])
def test_what_is_written_about_a_png_does_not_decide_over_it(rng, chunk):
    """Large or broken texts and profiles; PIL refuses the first and stops at the others."""
    pixels = random_image(rng, 6, 7)
    whole = encode(pixels, "PNG")
    for content in (b"a\0\0" + zlib.compress(bytes(2_000_000)), b"\xff" * 70, b"a\0\0\0\0\0"):
        text = struct.pack(">I", len(content)) + chunk + content + struct.pack(">I", zlib.crc32(chunk + content))
        assert np.array_equal(decode(record(whole[:33] + text + whole[33:]), 6, CENTER)[0].shape, (6, 6, 3))
        assert np.array_equal(opened(whole[:33] + text[:-1] + b"x" + whole[33:])[0], pixels)  # a wrong checksum
    broken = bytearray(whole[:33] + text + whole[33:])
    broken[-30] ^= 0xFF
    with pytest.raises(Unreadable, match="unreadable or truncated"):  # of the picture itself
        opened(bytes(broken))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_orientation_that_cannot_be_read_is_none(rng):
    pixels = random_image(rng, 6, 9)
    for exif in (b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 30, b"Exif\0\0II*\0\x08\0\0\0\x01\0"):
        assert opened(encode(pixels, "JPEG", exif=exif))[1] == (6, 9)


@pytest.mark.parametrize("size", [(1, 9000), (9000, 1), (2, 6001)])
def test_a_ribbon_costs_no_more_than_its_centre(rng, monkeypatch, size):
    """Beyond the pixel limit only the visible part is resized: equal to the whole up to PIL's float32 box."""
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    whole, _ = decode(record(pixels), 16, CENTER)
    monkeypatch.setattr(framing, "LARGEST", 10_000)
    part, _ = decode(record(pixels), 16, CENTER)
    assert np.abs(whole.astype(int) - part).max() <= 1
