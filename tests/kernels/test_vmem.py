"""What fits into VMEM, and the tile that follows from it."""

import types

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu

from vit_jax.kernels import vmem

SIZES = (64, 32, 16)


def test_half_of_a_chip_or_what_every_chip_has(monkeypatch):
    assert vmem.budget() == 32 * 2**20
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(pltpu, "get_tpu_info", lambda: types.SimpleNamespace(vmem_capacity_bytes=128 * 2**20))
    assert vmem.budget() == 64 * 2**20


@pytest.mark.parametrize(
    ("mib", "rows", "tile"),  # MiB of a row of the tile
    [
        (0.5, 1000, 64),  # exactly the budget
        (0.51, 1000, 32),
        (2, 1000, 16),
        (3, 1000, 16),  # nothing fits: the smallest
        (0.5, 64, 64),
        (0.5, 33, 48),  # no more than the rows
        (0.5, 16, 16),
        (0.5, 1, 16),
        (2, 40, 16),
    ],
)
def test_the_largest_tile_that_fits(mib, rows, tile):
    assert vmem.tile(SIZES, rows, lambda size: size * mib * 2**20) == tile
