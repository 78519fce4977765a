"""Pillow's pixels, by other means."""

import contextlib
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.helpers import encode, random_image
from vit_jax.data import resizing
from vit_jax.data.framing import CENTER, TRAINING, Framing
from vit_jax.data.image import decode
from vit_jax.data.sources.base import Unreadable

SIDES = st.integers(1, 90)
FRAMES = (TRAINING, CENTER, Framing("pad", fill=(9, 8, 7)), Framing(edge=70, interpolation="bilinear", rest=3))


def pixels(image: np.ndarray) -> resizing.Pixels:
    blend = resizing._kernel()
    assert blend is not None, resizing.note()
    return resizing.Pixels(image, blend)


@settings(max_examples=200, deadline=None)
@given(size=st.tuples(SIDES, SIDES), new=st.tuples(SIDES, SIDES), name=st.sampled_from([*resizing.FILTERS, "lanczos"]))
def test_resizing_is_pillows_to_the_last_bit(size, new, name):
    whole = np.random.default_rng(size).integers(0, 256, (*size, 3), np.uint8)
    whole[: size[0] // 2] = np.where(whole[: size[0] // 2] > 127, 255, 0)  # overshoot is cut off between the passes
    kind, image = Image.Resampling[name.upper()], Image.fromarray(whole)
    found = pixels(whole).resize(new, kind)
    assert found.size == new and np.array_equal(found, image.resize(new, kind))


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (1200, 300), (90, 4000), (301, 301)])
def test_photographs_in_strips(rng, size, monkeypatch):
    monkeypatch.setattr(resizing, "_STRIP", 100_000)
    whole = random_image(rng, *size)
    found = pixels(whole).resize((256, 256), Image.Resampling.BICUBIC)
    assert isinstance(found, resizing.Pixels)
    assert np.array_equal(found, Image.fromarray(whole).resize((256, 256), Image.Resampling.BICUBIC))


def test_what_is_compiled_is_what_is_written(rng):
    lines = rng.integers(0, 256, (9, 5), np.uint8)
    first, weights = resizing._taps(9, 4, "bicubic")
    a, b = np.empty((4, 5), np.uint8), np.empty((4, 5), np.uint8)
    resizing._blend(lines, first, weights, a)
    resizing._kernel()(lines, first, weights, b)
    assert np.array_equal(a, b) and len(np.unique(a)) > 10


def files() -> dict[str, bytes | np.ndarray]:
    rng = np.random.default_rng(0)
    image, turned = random_image(rng, 230, 310), Image.Exif()
    turned[0x0112] = 6
    grain = rng.integers(0, 256, (230, 310, 3), np.uint8)
    jpeg = encode(image)
    return {
        "jpeg": jpeg, "grain": encode(grain), "turned": encode(image, exif=turned), "png": encode(grain, "PNG"),
        "drafted": encode(random_image(rng, 400, 500)), "grey": encode(Image.fromarray(image).convert("L")),
        "cmyk": encode(Image.fromarray(image).convert("CMYK")), "truncated": jpeg[: len(jpeg) // 2], "array": grain,
        "ribbon": encode(random_image(rng, 2, 20_000)),
    }  # fmt: skip


@pytest.mark.parametrize("frame", FRAMES)
def test_every_file_becomes_the_canvas_that_pillow_makes_or_the_same_error(frame):
    def outcome(data, sooner):
        with contextlib.suppress(Unreadable):
            return decode({"image": data, "label": 0, "name": "a"}, 64, frame, fast=sooner)
        return None

    for name, data in files().items():
        ours, pillows = outcome(data, True), outcome(data, False)
        assert (ours is None) == (pillows is None), name
        if ours and pillows:
            assert ours[1] == pillows[1] and ours[0].dtype == np.uint8, name
            assert ours[0].shape == (64, 64, 3) and np.array_equal(ours[0], pillows[0]), name


@pytest.mark.parametrize(("size", "ours"), [((32, 32), False), ((5000, 5000), False), ((500, 375), True)])
def test_small_and_huge_images_are_left_to_pillow(size, ours):
    assert isinstance(resizing.picture(Image.new("RGB", size)), resizing.Pixels) == ours


def test_it_says_what_is_used(monkeypatch):
    found = resizing.version()
    assert found.startswith("numba ") and resizing.note() == f"{found} (Pillow's pixels)"
    monkeypatch.setattr(resizing, "_loaded", lambda: None)
    assert resizing.note() == f"Pillow, although {found} is there"
    monkeypatch.setattr(resizing, "PACKAGE", "no_such_package")
    assert resizing.version() == "" and resizing.note().startswith("Pillow; sooner, with the same pixels: pip install ")
    assert "[fast]" in resizing.note()


def test_what_makes_other_pixels_is_not_used(monkeypatch):
    load = resizing._loaded.__wrapped__
    monkeypatch.setattr(resizing, "_equal", lambda blend: False)
    with pytest.warns(UserWarning, match=r"^Pillow resizes images, although numba .* makes other pixels$"):
        assert load() is None
    monkeypatch.undo()
    assert resizing._equal(resizing._kernel())
    assert not resizing._equal(lambda lines, first, weights, out: out.fill(7))
    monkeypatch.setattr(resizing, "PACKAGE", "no_such_package")
    with warnings.catch_warnings(action="error"):
        assert load() is None
