"""Affine maps against PIL's transform and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax.augment.warp import Affine, inverse_matrix, warp
from vit_jax.types import UserError


def pil_affine(image, matrix, shift):
    """float32[H,W,C]: PIL takes (x, y) coordinates from the top-left corner of the image."""
    h, w, _ = image.shape
    (yy, yx), (xy, xx) = np.float64(matrix)
    x0 = w / 2 + shift[1] - xx * w / 2 - xy * h / 2
    y0 = h / 2 + shift[0] - yx * w / 2 - yy * h / 2
    data = (xx, xy, x0, yx, yy, y0)
    bands = [
        Image.fromarray(np.ascontiguousarray(image[..., c])).transform(
            (w, h), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(b) for b in bands], -1)


def test_warp_is_pils_bilinear_affine_transform(rng):
    image = rng.random((17, 24, 3), np.float32)
    jitted = jax.jit(warp)
    for _ in range(8):
        matrix = np.float32(np.eye(2) + rng.normal(0, 0.3, (2, 2)))
        shift = np.float32(rng.uniform(-4, 4, 2))
        ours, theirs = jitted(image, matrix, shift), pil_affine(image, matrix, shift)
        # A sample exactly on the border may fall on either side of it.
        differ = np.abs(np.asarray(ours) - theirs).max(-1) > 1e-4
        assert differ.mean() < 0.005


def test_identity_is_exact_and_whole_shifts_are_slices(rng):
    image = rng.random((8, 9, 3), np.float32)
    moved = jax.jit(lambda shift: warp(image, inverse_matrix(), shift, fill=0.25))
    np.testing.assert_array_equal(moved(np.zeros(2, np.float32)), image)
    shifted = moved(np.array([2, -3], np.float32))
    np.testing.assert_allclose(shifted[:6, 3:], image[2:, :-3], atol=1e-6)
    assert (np.asarray(shifted)[6:] == 0.25).all() and (np.asarray(shifted)[:, :3] == 0.25).all()


def test_rotation_is_counter_clockwise_about_the_centre(rng):
    image = rng.random((12, 12, 3), np.float32)
    turn = jax.jit(lambda angle: warp(image, inverse_matrix(angle), jnp.zeros(2)))
    np.testing.assert_allclose(turn(math.pi / 2), np.rot90(image), atol=1e-5)


def test_inverse_matrix_inverts_shear_then_rotation_then_zoom():
    angle, kx, ky, zoom = 0.4, 0.3, -0.2, 1.7
    shear = np.array([[1, ky], [kx, 1]])
    rotate = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    ours = inverse_matrix(angle, kx, ky, zoom)
    np.testing.assert_allclose(ours, np.linalg.inv(zoom * rotate @ shear), rtol=1e-5)


def test_affine_draws_every_part_within_its_range():
    # A linear image shows where each pixel came from: value = y or x, far from the border.
    y, x = np.mgrid[:21, :21].astype(np.float32) - 10
    image = np.stack([y, x, y], -1)
    op = jax.jit(jax.vmap(Affine(rotate=20, translate=0.1, scale=(0.8, 1.25)), (0, None)))
    out = np.asarray(op(jax.random.split(jax.random.key(0), 400), image))
    shift = out[:, 10, 10, :2]
    assert np.abs(shift).max(0).min() > 1.8 and np.abs(shift).max() <= 2.1 + 1e-4
    matrix = np.stack([out[:, 11, 10, :2] - shift, out[:, 10, 11, :2] - shift], -1)
    zoom = 1 / np.sqrt(np.linalg.det(matrix))
    assert 0.8 - 1e-4 <= zoom.min() < 0.83 and 1.2 < zoom.max() <= 1.25 + 1e-4
    angle = np.degrees(np.arctan2(matrix[:, 0, 1], matrix[:, 0, 0]))
    assert -20.01 <= angle.min() < -18 and 18 < angle.max() <= 20.01


def test_wrong_fields_are_sentences():
    for kwargs, message in (
        ({"rotate": 200.0}, "rotate=200"),
        ({"translate": 2.0}, "translate"),
        ({"scale": (0, 1)}, "scale.*=0 is not allowed"),
    ):
        with pytest.raises(UserError, match=message):
            Affine(**kwargs)
