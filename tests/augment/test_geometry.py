"""Crops and resizes against PIL on float images, and the distribution of the random boxes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax.augment import geometry
from vit_jax.types import UserError

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def pil_resize(image, box, size, interpolation):
    """float32[H,W,C] -> float32[h,w,C] by PIL's resampling of float channels."""
    top, left, bottom, right = map(float, box)
    bands = [
        Image.fromarray(np.ascontiguousarray(image[..., c])).resize(
            size[::-1], FILTERS[interpolation], box=(left, top, right, bottom)
        )
        for c in range(image.shape[-1])
    ]
    return np.clip(np.stack([np.asarray(b) for b in bands], -1), 0, 1)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("shape,size", [((33, 21), (12, 30)), ((16, 16), (16, 16)), ((9, 50), (7, 11))])
def test_resample_is_pils_resize_with_a_box(rng, interpolation, shape, size):
    image = rng.random((*shape, 3), np.float32)
    resample = jax.jit(functools.partial(geometry.resample, size=size, interpolation=interpolation))
    whole = [0.0, 0.0, *map(float, shape)]
    corners = [np.sort(rng.uniform(0, [[n], [m]], (2, 2)), axis=1) for n, m in [shape] * 6]
    for box in [whole, *([y[0], x[0], y[1], x[1]] for y, x in corners)]:
        box = np.array(box)
        box[2:] = np.minimum(np.maximum(box[2:], box[:2] + 0.5), shape)
        ours = resample(image, jnp.float32(box))
        np.testing.assert_allclose(ours, pil_resize(image, np.float32(box), size, interpolation), atol=1e-4)


def test_uint8_input_and_static_boxes_are_the_same_resampling(rng):
    image = rng.integers(0, 256, (14, 14, 3), np.uint8)
    box = (1.0, 2.0, 9.0, 10.0)
    resample = jax.jit(geometry.resample, static_argnums=2)
    expected = resample(np.float32(image) / 255, np.float32(box), 5)
    np.testing.assert_allclose(jax.jit(lambda x: geometry.resample(x, box, 5))(image), expected, atol=1e-6)
    sliced = geometry.resample(image, box, 8)  # no resampling needed: exact pixels
    np.testing.assert_array_equal(sliced, np.float32(image[1:9, 2:10]) * np.float32(1 / 255))
    np.testing.assert_allclose(resample(image, np.float32(box), 8), sliced, atol=1e-6)


def test_resize_matrix_rows_sum_to_one_and_never_read_outside_the_line():
    matrix = np.asarray(geometry.resize_matrix(jnp.float32(0), jnp.float32(3), 11, 4, "bilinear"))
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    assert matrix[:, 5:].max() == 0


def boxes(op, original, n=4000):
    keys = jax.random.split(jax.random.key(1), n)
    return np.asarray(jax.jit(jax.vmap(op.box, (0, None)))(keys, jnp.array(original)))


@pytest.mark.parametrize("original", [(100, 100), (60, 90), (301, 200)])
def test_inception_crop_has_the_uniform_area_and_log_uniform_aspect_of_the_original(original):
    op = geometry.InceptionCrop(scale=(0.1, 0.4))
    top, left, bottom, right = boxes(op, original).T
    assert min(top.min(), left.min()) >= 0 and max(bottom.max(), right.max()) <= 1 + 1e-6
    area = (bottom - top) * (right - left)
    ratio = (right - left) * original[1] / ((bottom - top) * original[0])
    # Every ratio in the range fits at these areas, so nothing is rejected: both are exactly uniform.
    for value, low, high in ((area, 0.1, 0.4), (np.log(ratio), np.log(3 / 4), np.log(4 / 3))):
        quantiles = np.quantile(value, np.linspace(0.05, 0.95, 19))
        np.testing.assert_allclose((quantiles - low) / (high - low), np.linspace(0.05, 0.95, 19), atol=0.03)
    place = top / (1 - (bottom - top))
    np.testing.assert_allclose(np.quantile(place, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)


def numpy_inception_box(rng, original, scale, ratio):
    """The rule written as the loop of the papers' code, in pixels of the original; returns (height, width)."""
    for _ in range(10):
        area = original[0] * original[1] * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        h, w = np.sqrt(area / aspect), np.sqrt(area * aspect)
        if h <= original[0] and w <= original[1]:
            return h, w
    aspect = np.clip(original[1] / original[0], *ratio)
    return min(original[0], original[1] / aspect), min(original[1], original[0] * aspect)


def test_inception_crop_with_rejections_follows_the_loop(rng):
    op, original = geometry.InceptionCrop(scale=(0.3, 1.0)), (50, 100)
    top, left, bottom, right = boxes(op, original).T
    ours = np.stack([(bottom - top) * 50, (right - left) * 100])
    loop = np.array([numpy_inception_box(rng, original, op.scale, op.ratio) for _ in range(4000)]).T
    for a, b in zip(ours, loop, strict=True):
        np.testing.assert_allclose(np.quantile(a, [0.1, 0.5, 0.9]), np.quantile(b, [0.1, 0.5, 0.9]), rtol=0.03)


def test_inception_crop_falls_back_to_the_largest_centred_box():
    (box,) = boxes(geometry.InceptionCrop(scale=(1.0, 1.0)), (100, 400), n=1)
    side = 100 * 4 / 3 / 400
    np.testing.assert_allclose(box, [0, 0.5 - side / 2, 1, 0.5 + side / 2], atol=1e-6)


def test_center_crop_and_resize_undo_or_keep_the_squash(rng):
    image = rng.random((12, 12, 3), np.float32)
    key, original = jax.random.key(0), jnp.array([20, 40])
    ours = geometry.CenterCrop(0.5)(key, image, original, 6)
    np.testing.assert_allclose(ours, pil_resize(image, (3, 4.5, 9, 7.5), (6, 6), "bilinear"), atol=1e-5)
    np.testing.assert_array_equal(geometry.Resize()(key, image, original, 12), image)


@pytest.mark.parametrize("mode,numpy_mode", [("reflect", "reflect"), ("edge", "edge"), ("zero", "constant")])
def test_random_crop_is_a_window_of_the_padded_canvas(rng, mode, numpy_mode):
    image = rng.integers(0, 256, (7, 7, 3), np.uint8)
    op = jax.jit(lambda key: geometry.RandomCrop(3, mode)(key, image, jnp.array([7, 7]), 5))
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode=numpy_mode)
    windows = {padded[y : y + 5, x : x + 5].tobytes(): (y, x) for y in range(9) for x in range(9)}
    keys = jax.random.split(jax.random.key(0), 200)
    places = {windows[np.uint8(np.round(255 * np.asarray(op(key)))).tobytes()] for key in keys}
    assert {y for y, _ in places} == {x for _, x in places} == set(range(9))


def test_flip_is_a_mirror_with_its_probability(rng):
    image = rng.random((3, 4, 3), np.float32)
    out = jax.jit(jax.vmap(geometry.Flip(0.3), (0, None)))(jax.random.split(jax.random.key(0), 2000), image)
    flipped = (np.asarray(out) == image[:, ::-1]).all((1, 2, 3))
    assert (flipped | (np.asarray(out) == image).all((1, 2, 3))).all()
    assert abs(flipped.mean() - 0.3) < 0.04


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: geometry.Flip(1.5), "prob=1.5 is not allowed"),
        (lambda: geometry.InceptionCrop(scale=(0.5, 0.1)), "is no range"),
        (lambda: geometry.InceptionCrop(scale=(0.5, 2.0)), r"scale\[1\]=2.0 is not allowed"),
        (lambda: geometry.InceptionCrop(ratio=(0.0, 1.0)), r"ratio\[0\]=0.0 is not allowed"),
        (lambda: geometry.CenterCrop(0.0), "crop=0.0 is not allowed"),
        (lambda: geometry.RandomCrop(-1), "padding=-1"),
        (lambda: geometry.RandomCrop(1)(jax.random.key(0), jnp.zeros((4, 4, 3)), jnp.array([4, 4]), 9), "of 9 px"),
        (lambda: geometry.RandomCrop(4)(jax.random.key(0), jnp.zeros((4, 4, 3)), jnp.array([4, 4]), 4), "'reflect'"),
    ],
)
def test_wrong_fields_are_sentences(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_center_box_snaps_to_whole_pixels():
    assert geometry.center_box(256, 0.875) == (16.0, 16.0, 240.0, 240.0)
    assert geometry.center_box(36, 32 / 36) == (2.0, 2.0, 34.0, 34.0)
    assert geometry.center_box(10, 0.75) == (1.25, 1.25, 8.75, 8.75)
