"""The patterns: the butterfly against its definition, balance, and that they never change."""

import numpy as np
import pytest

from vit_jax.kernels.block_sparse import patterns
from vit_jax.types import UserError


def mask(index, in_blocks):
    """Output blocks by input blocks, ``#`` where a block is read."""
    return ["".join("#" if i in row else "." for i in range(in_blocks)) for row in index]


def test_flat_butterfly_of_eight_blocks():
    assert mask(patterns.butterfly(8, 8, 4), 8) == [  # local, and one stride of 1, 2 and 4
        "###.#...",
        "##.#.#..",
        "#.##..#.",
        ".###...#",
        "#...###.",
        ".#..##.#",
        "..#.#.##",
        "...#.###",
    ]


@pytest.mark.parametrize(("cells", "factors"), [(8, 0), (8, 1), (16, 3), (32, 5)])
def test_powers_of_two_are_the_union_of_the_first_factors(cells, factors):
    want = np.eye(cells, dtype=bool)
    for stride in (2**f for f in range(factors)):  # the factor of a stride joins both halves of groups of 2 strides
        halves = np.kron(np.ones((2, 2)), np.eye(stride))
        want |= np.kron(np.eye(cells // (2 * stride)), halves).astype(bool)
    got = np.zeros((cells, cells), bool)
    np.put_along_axis(got, patterns.butterfly(cells, cells, factors + 1), True, 1)
    np.testing.assert_array_equal(got, want)


def test_cells_of_other_numbers_and_rectangles():
    assert mask(patterns.butterfly(6, 6, 4), 6) == ["###.#.", "##.#.#", "#.###.", ".###.#", "#.#.##", ".#.###"]
    assert mask(patterns.butterfly(4, 8, 2), 4) == ["##..", "##..", "##..", "##..", "..##", "..##", "..##", "..##"]
    assert mask(patterns.butterfly(8, 4, 5), 8) == ["#####...", "####..#.", "#...####", "..#.####"]
    assert mask(patterns.butterfly(5, 3, 3), 5) == ["###..", ".###.", "#..##"]


SIZES = [(24, 96, 6), (96, 24, 24), (24, 72, 5), (7, 7, 3), (1, 4, 1), (13, 5, 9), (5, 13, 5), (6, 6, 6)]


@pytest.mark.parametrize(("in_blocks", "out_blocks", "per"), SIZES)
def test_balanced_and_nothing_twice(in_blocks, out_blocks, per):
    for index in (patterns.butterfly(in_blocks, out_blocks, per), patterns.random(in_blocks, out_blocks, per, 3)):
        assert index.shape == (out_blocks, per) and index.dtype == np.int32 and not index.flags.writeable
        assert index.min() >= 0 and index.max() < in_blocks and (np.diff(index, axis=1) > 0).all()
        if per >= in_blocks / out_blocks + 1:
            assert set(index.ravel()) == set(range(in_blocks))  # every input is read
    readers = np.bincount(patterns.butterfly(in_blocks, out_blocks, per).ravel(), minlength=in_blocks)
    if out_blocks % in_blocks == 0:
        assert set(readers) == {out_blocks // in_blocks * per}


def test_a_seed_means_the_same_for_ever():
    assert patterns.random(8, 6, 3, 0).tolist() == [
        [0, 1, 2],
        [0, 1, 3],
        [2, 3, 5],
        [1, 4, 6],
        [3, 5, 6],
        [3, 6, 7],
    ]
    assert patterns.random(8, 6, 3, 1).tolist() != patterns.random(8, 6, 3, 0).tolist()
    many = patterns.random(40, 400, 4, 2)
    counts = np.bincount(many.ravel(), minlength=40)
    assert counts.min() > 20 and counts.max() < 65  # 40 each on average, 10 of them as own cells


def test_counts_and_sentences():
    assert [patterns.count(d, 24) for d in (0.25, 0.3, 0.01, 1.0)] == [6, 7, 1, 24]
    with pytest.raises(UserError, match="4 output blocks cannot read 3 of 2 input blocks each; give 1 to 2"):
        patterns.butterfly(2, 4, 3)
    with pytest.raises(UserError, match="cannot read 0 of 2"):
        patterns.random(2, 4, 0, 0)
