"""Patterns as dense products: every block once, blocks that read the same together."""

import numpy as np
import pytest

from vit_jax.kernels.block_sparse import patterns
from vit_jax.kernels.block_sparse.plan import Part, as_pattern, parts, runs, sums, width


@pytest.mark.parametrize(
    "index", [patterns.butterfly(6, 24, 3), patterns.butterfly(24, 6, 9), patterns.random(7, 9, 4, 0)]
)
def test_every_block_is_in_one_part(index):
    found = sorted(
        (target, slot, source)
        for part in parts(as_pattern(index))
        for source, slots in zip(part.sources, part.slots, strict=True)
        for target, slot in zip(part.targets, slots, strict=True)
    )
    assert found == [(j, t, i) for j, row in enumerate(index.tolist()) for t, i in enumerate(row)]


def test_by_outputs_or_by_inputs():
    wide = parts(((0, 1), (0, 1), (1, 2), (0, 1)))
    assert wide == (Part((0, 1), (0, 1, 3), ((0, 0, 0), (1, 1, 1))), Part((1, 2), (2,), ((0,), (1,))))
    assert width(wide) == 5 + 3
    high = parts(((0, 1, 2), (0, 1, 3), (0, 1, 4)))
    assert high[0] == Part((0, 1), (0, 1, 2), ((0, 0, 0), (1, 1, 1))) and width(high) == 5 + 3 * 2
    assert high[2] == Part((3,), (1,), ((2,),))
    assert [part.targets for part in parts(((1, 1, 2), (0, 1, 2), (0, 1, 2)))] == [(0,), (1, 2)]  # an input twice
    twice = (0, 0, 1, 2, 3, 4, 5), (0, 0, 1, 2, 3, 4, 6)  # narrower by inputs, were it not for the 0
    assert [part.sources for part in parts(twice)] == list(twice)


def test_parts_that_follow_from_stretching():
    assert len(parts(as_pattern(patterns.butterfly(24, 96, 6)))) == 24  # four blocks of outputs each
    assert len(parts(as_pattern(patterns.butterfly(96, 24, 24)))) == 24  # four blocks of inputs each


def test_runs_and_sums():
    assert list(runs((0, 1, 2, 5, 7, 8))) == [(0, 3), (5, 6), (7, 9)] and list(runs((4,))) == [(4, 5)]
    assert sums([(0, 1, 4), (1, 2)], 6) == [
        (1, [(0, 0)]),
        (1, [(0, 1), (1, 0)]),
        (1, [(1, 1)]),
        (1, []),
        (1, [(0, 2)]),
        (1, []),
    ]
    assert sums([(2, 3, 0, 1)], 5) == [(2, [(0, 2)]), (2, [(0, 0)]), (1, [])]
    assert sums([], 3) == [(3, [])]
    assert np.sum([n for n, _ in sums([(0, 1), (1, 2, 3)], 4)]) == 4
