"""What fits into VMEM, the tile that follows from it, and its rows behind the last."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from vit_jax.kernels import vmem

SIZES = (64, 32, 16)


def test_half_of_a_chip_or_what_every_chip_has(monkeypatch):
    assert vmem.budget() == 32 * 2**20
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(pltpu, "get_tpu_info", lambda: types.SimpleNamespace(vmem_capacity_bytes=128 * 2**20))
    assert vmem.budget() == 64 * 2**20


def test_what_takes_too_much_is_said_in_a_sentence():
    assert vmem.excess("it", 32 * 2**20) is None
    assert vmem.excess("it", 40 * 2**20) == "it takes 40 MiB of VMEM, of which it may use 32"


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((3, 4), "float32", None),
        ((2, 3, 4), "bfloat16", None),
        ((0, 4), "float32", "there are no rows"),
        ((3, 4), "float16", "x is float16, neither float32 nor bfloat16"),
        (jax.export.symbolic_shape("b, 4"), "float32", "the number of rows is not known"),
    ],
)
def test_rows_that_no_kernel_takes(shape, dtype, reason):
    assert vmem.unsupported_rows(jax.ShapeDtypeStruct(shape, dtype)) == reason


def test_rows_behind_the_last_are_zeros():
    value = jnp.full((4, 2), jnp.nan)
    assert vmem.inside(value, jnp.int32(1), 8) is value
    np.testing.assert_array_equal(vmem.inside(value, jnp.int32(0), 6), value)
    np.testing.assert_array_equal(vmem.inside(value, jnp.int32(1), 6), value.at[2:].set(0))


@pytest.mark.parametrize(
    ("mib", "rows", "tile"),
    [
        (0.5, 64, 64),  # exactly the budget
        (0.51, 64, 32),
        (3, 1000, 16),  # nothing fits: the smallest
        (0.5, 37, 37),  # all rows, however many
        (0.5, 65, 48),  # two tiles, as even as their unit allows
        (0.5, 200, 64),
        (2, 40, 16),
    ],
)
def test_no_tile_is_nearly_empty(mib, rows, tile):
    assert vmem.even("monarch", SIZES, rows, lambda size: size * mib * 2**20) == tile


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((5,), (1, 5)),
        ((3, 5), (3, 5)),
        ((2, 127, 5), (254, 5)),
        ((2, 128, 5), (2, 128, 5)),
        ((2, 3, 197, 5), (6, 197, 5)),
    ],
)
def test_images_of_many_rows_stay_apart(shape, seen):
    assert vmem.images(jnp.zeros(shape)).shape == seen
