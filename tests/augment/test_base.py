"""Pixel range, luma, rectangles and checks."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax.augment import base
from vit_jax.augment.geometry import Flip, InceptionCrop
from vit_jax.types import UserError


def test_unit_scales_bytes_and_leaves_floats(rng):
    image = rng.integers(0, 256, (3, 4, 3), np.uint8)
    out = base.unit(jnp.asarray(image))
    assert out.dtype == jnp.float32 and base.unit(out) is out
    np.testing.assert_allclose(out, image / 255, atol=1e-7)


def test_luma_is_pils_grey(rng):
    image = rng.integers(0, 256, (5, 6, 3), np.uint8)
    grey = np.asarray(Image.fromarray(image).convert("L"))
    np.testing.assert_allclose(base.luma(base.unit(jnp.asarray(image)))[..., 0] * 255, grey, atol=0.51)


def test_inside_is_the_half_open_rectangle():
    expected = np.zeros((4, 5, 1), bool)
    expected[1:3, 2:5] = True
    np.testing.assert_array_equal(base.inside(4, 5, jnp.array([1.0, 2.0]), jnp.array([3.0, 9.0])), expected)


def test_checks_name_the_operation_the_field_and_the_range():
    with pytest.raises(UserError, match=r"Flip.prob=-0.1 is not allowed; give a number from 0 to 1\."):
        Flip(-0.1)
    with pytest.raises(UserError, match=r"InceptionCrop: ratio=\(2, 1\) is no range; write 0 < low <= high."):
        InceptionCrop(ratio=(2.0, 1.0))
