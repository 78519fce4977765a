"""Photometric operations against PIL, colorsys and the erased areas that were asked for."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from vit_jax.augment import color
from vit_jax.types import UserError

SHAPE = (13, 18, 3)
ENHANCERS = {
    color.brightness: ImageEnhance.Brightness,
    color.contrast: ImageEnhance.Contrast,
    color.saturation: ImageEnhance.Color,
    color.sharpness: ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("op", ENHANCERS, ids=lambda op: op.__name__)
def test_each_enhancement_is_pils_to_rounding(rng, op):
    image = rng.integers(0, 256, SHAPE, np.uint8)
    jitted = jax.jit(op)
    for factor in (0.0, 0.4, 1.0, 1.7):
        theirs = np.float32(ENHANCERS[op](Image.fromarray(image)).enhance(factor))
        ours = np.asarray(jitted(np.float32(image) / 255, factor)) * 255
        # PIL rounds the second image by up to 0.5 before it is scaled by |1 - factor|, then truncates.
        np.testing.assert_allclose(ours, theirs, atol=1.01 + 0.5 * abs(1 - factor))


@pytest.mark.parametrize("op", ENHANCERS, ids=lambda op: op.__name__)
def test_factor_one_changes_nothing(rng, op):
    image = rng.random(SHAPE, np.float32)
    np.testing.assert_array_equal(op(image, 1.0), image)


def test_smooth_is_pils_filter(rng):
    image = rng.integers(0, 256, SHAPE, np.uint8)
    theirs = Image.fromarray(image).filter(ImageFilter.SMOOTH)
    np.testing.assert_allclose(color.smooth(jnp.float32(image)), np.float32(theirs), atol=0.51)


def test_hue_turns_the_hue_of_colorsys(rng):
    image = rng.random((6, 7, 3), np.float32)
    image[0] = image[0, :, :1]  # greys have no hue
    image[1, :, 1] = image[1, :, 0]
    for turn in (-0.5, -0.1, 0.0, 0.3):
        expected = np.empty_like(image)
        for i in np.ndindex(6, 7):
            h, s, v = colorsys.rgb_to_hsv(*map(float, image[i]))
            expected[i] = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
        np.testing.assert_allclose(color.hue(image, turn), expected, atol=1e-5)


def test_jitter_draws_within_its_ranges_and_leaves_out_what_is_zero(rng):
    image = np.full((4, 4, 3), 0.25, np.float32)
    keys = jax.random.split(jax.random.key(0), 500)
    out = jax.jit(jax.vmap(color.ColorJitter(0.5, 0, 0, 0, prob=0.8), (0, None)))(keys, image)
    factor = np.asarray(out)[:, 0, 0, 0] / 0.25
    assert abs((factor == 1).mean() - 0.2) < 0.06
    assert 0.5 <= factor.min() < 0.52 and 1.48 < factor.max() <= 1.5
    greyish = rng.random((5, 5, 3), np.float32)
    np.testing.assert_array_equal(color.ColorJitter(0, 0, 0)(keys[0], greyish), greyish)


def test_jitter_order_is_brightness_contrast_saturation_hue(rng):
    image, key = rng.random(SHAPE, np.float32), jax.random.key(3)
    b, c, s, h, _ = np.asarray(jax.random.uniform(key, (5,)))
    expected = color.contrast(color.brightness(image, 0.6 + 0.8 * b), 0.7 + 0.6 * c)
    expected = color.hue(color.saturation(expected, 0.5 + s), 0.1 * (2 * h - 1))
    ours = color.ColorJitter(0.4, 0.3, 0.5, 0.1)(key, image)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["pixel", "const"])
def test_erasing_overwrites_one_rectangle_of_the_drawn_area(mode):
    h, w = 24, 31
    image = np.full((h, w, 3), 2.0, np.float32)  # a value that no fill has
    op = color.RandomErasing(prob=0.6, area=(0.1, 0.3), ratio=0.5, mode=mode, fill=0.25)
    out = np.asarray(jax.jit(jax.vmap(op, (0, None)))(jax.random.split(jax.random.key(0), 600), image))
    erased = (out != 2.0).all(-1)
    hit = erased.any((1, 2))
    assert abs(hit.mean() - 0.6) < 0.06
    height, width = erased.any(2).sum(1)[hit], erased.any(1).sum(1)[hit]
    assert (erased.sum((1, 2))[hit] == height * width).all()  # a full rectangle
    share, ratio = height * width / (h * w), height / width
    assert 0.07 < share.min() < 0.13 and 0.27 < share.max() < 0.33 and abs(np.median(share) - 0.2) < 0.02
    assert 0.4 < ratio.min() < 0.6 and 1.7 < ratio.max() < 2.3
    if mode == "const":
        assert (out[erased] == 0.25).all()
    else:
        assert 0 <= out[erased].min() < 0.01 and 0.99 < out[erased].max() < 1 and len(np.unique(out[erased][:50])) > 100


def test_wrong_fields_are_sentences():
    for make, message in (
        (lambda: color.ColorJitter(hue=0.6), "hue=0.6 is not allowed"),
        (lambda: color.ColorJitter(brightness=-1.0), "brightness"),
        (lambda: color.RandomErasing(area=(0.5, 0.2)), "is no range"),
        (lambda: color.RandomErasing(ratio=0.0), "ratio=0.0 is not allowed"),
    ):
        with pytest.raises(UserError, match=message):
            make()
