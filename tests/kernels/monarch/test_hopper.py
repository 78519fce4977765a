"""What the extents of the Hopper kernel must keep to, over many sizes."""

import itertools

import pytest

from vit_jax.kernels.monarch.hopper import COLUMNS, MEMORY, STEPS, Plan, plan
from vit_jax.kernels.monarch.layout import Sizes

WIDTHS = [(192, 192), (192, 768), (384, 384), (768, 768), (768, 3072), (3072, 768), (768, 1000), (1280, 5120), (64, 64)]


def sizes(n, m, blocks, parts):
    middle = min(n, m) // blocks // blocks * blocks
    return Sizes(blocks, n // blocks, middle // blocks, blocks, m // blocks, parts)


@pytest.mark.parametrize("rows", [1, 65, 1576])
def test_every_extent_suits_the_matrix_unit_and_the_copies(rows):
    cases = itertools.product(WIDTHS, (2, 4, 8), (1, 4), (False, True))
    plans = [
        plan(sizes(n, m, blocks, parts), rows, swap) for (n, m), blocks, parts, swap in cases if n % (4 * blocks) == 0
    ]
    found = [p for p in plans if isinstance(p, Plan)]
    assert len(found) > 0.8 * len(plans)
    for p in found:
        width = p.together * p.slot
        assert p.window % p.swizzle1 == p.step1 % p.swizzle1 == p.piece % p.step1 == 0
        assert width % p.step2 == p.step2 % p.swizzle2 == p.out_tile % p.swizzle2 == p.K % p.together == 0
        assert p.slot % 8 == p.rows % 8 == 0 and p.out_tile % 32 == 0 and p.rows >= max(rows, p.tile)
        assert max(width - p.slot + p.window, p.out_tile) <= COLUMNS and width <= COLUMNS
        assert p.inputs <= p.piece < p.inputs + 16 and p.outputs <= p.width < p.outputs + COLUMNS
        assert p.memory <= MEMORY and sum(p.steps) <= STEPS and p.groups == (2 if rows > 64 else 1)


def test_extents_of_a_wide_mlp_by_hand():
    p = plan(sizes(768, 3072, 4, 1), 1576, False)
    assert (p.slot, p.window, p.swizzle1, p.step1) == (48, 64, 64, 64)  # T = 48, a third of the window is zeros
    assert (p.together, p.swizzle2, p.step2, p.out_tile) == (4, 64, 64, 128)
    assert (p.tile, p.stages, p.rows, p.steps) == (128, 3, 1576, (12, 18))
    ring, rest = 64 * (128 + 64) + 64 * 128, 128 * (192 + 128)
    assert p.memory == 2 * (3 * ring + rest) + 4 * 768


def test_exchanged_factors():
    p = plan(sizes(3072, 768, 4, 4), 8, True)
    assert (p.K, p.parts, p.inputs, p.L, p.out_parts, p.outputs) == (4, 1, 192, 4, 4, 192)


def test_what_is_too_wide():
    assert plan(Sizes(2, 512, 512, 2, 64, 1), 64, False).startswith("a block gives 512 values")
    assert plan(Sizes(16, 64, 256, 2, 64, 1), 64, False).startswith("64 rows of 4096 values")
    assert plan(Sizes(4, 16384, 64, 4, 64, 1), 64, False).endswith("more than the 512 it is unrolled for")


def test_two_narrow_blocks_do_not_share_sixteen_columns():
    for K in (2, 4, 6):
        p = plan(Sizes(K, 48, 8, 3, 48, 1), 64, False)
        assert p.together * p.slot > 16 and p.slot == (16 if K == 2 else 8)
