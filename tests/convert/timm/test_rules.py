"""The one rule that joins tensors: registers and positions."""

import numpy as np
import pytest

from vit_jax.convert.timm.rules import Layout, rules
from vit_jax.models import create, describe

GRID = np.arange(4 * 3, dtype=np.float32).reshape(1, 4, 3)


def joined(pool: str, registers: int, prefix: int):
    model = create("vit", width=3, heads=1, depth=1, pool=pool, registers=registers)
    return next(r for r in rules(model, Layout(prefix)) if "pos_embed" in r.theirs)


def rows(*values: float) -> np.ndarray:
    return np.stack([np.full(3, v, np.float32) for v in values])[None] if values else np.zeros((1, 0, 3), np.float32)


def test_positions_of_the_grid_alone():
    r = joined("cls", 2, 0)
    registers, positions = r.transform.into(rows(7, 8), GRID)
    np.testing.assert_array_equal(registers, rows(7, 8))
    np.testing.assert_array_equal(positions, np.concatenate([rows(0), GRID], 1))
    for a, b in zip(r.transform.back(registers, positions), (rows(7, 8), GRID), strict=True):
        np.testing.assert_array_equal(a, b)


def test_positions_of_every_token():
    r = joined("cls", 2, 3)
    registers, positions = r.transform.into(rows(7, 8), np.concatenate([rows(1, 10, 20), GRID], 1))
    np.testing.assert_array_equal(registers, rows(17, 28))
    np.testing.assert_array_equal(positions, np.concatenate([rows(1), GRID], 1))
    theirs = r.transform.back(registers, positions)
    np.testing.assert_array_equal(theirs[0], rows(17, 28))
    np.testing.assert_array_equal(theirs[1], np.concatenate([rows(1, 0, 0), GRID], 1))


def test_registers_without_a_class_token():
    r = joined("gap", 2, 2)
    registers, positions = r.transform.into(rows(7, 8), np.concatenate([rows(10, 20), GRID], 1))
    np.testing.assert_array_equal(registers, rows(17, 28))
    np.testing.assert_array_equal(positions, GRID)


def test_no_registers():
    assert joined("gap", 0, 0).theirs == ("pos_embed",)
    (positions,) = joined("cls", 0, 1).transform.into(np.concatenate([rows(1), GRID], 1))
    np.testing.assert_array_equal(positions, np.concatenate([rows(1), GRID], 1))


@pytest.mark.first(3)
@pytest.mark.parametrize(
    ("name", "fields", "size"),
    [
        ("vit", dict(depth=3, registers=2, layer_scale=1.0), 32),
        ("vit", dict(pool="map"), 32),
        ("vit", dict(pool="cls_gap", num_classes=0), 32),
        ("vit", dict(positions="sincos2d", registers=1), 32),
        ("vit_r50_b16", {}, 32),
        ("vit_r_ti16", {}, 32),
    ],
)
def test_every_parameter_has_one_rule(name, fields, size):
    model = create(name, **fields)
    ours = [path for r in rules(model, Layout()) for path in r.ours]
    assert sorted(ours) == sorted(describe.shapes(model, size))
    theirs = [name for r in rules(model, Layout()) for name in r.theirs]
    assert len(set(theirs)) == len(theirs)
