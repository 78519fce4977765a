"""Windows around blocks: whole registers that hold every block, in a weight one behind the other."""

import numpy as np
import pytest

from vit_jax.kernels.windows import LANES, Window, around, height, merged, no_less_work, up


def test_rounding_up_to_registers():
    assert [up(n) for n in (0, 1, 127, 128, 129, 256)] == [0, 128, 128, 128, 256, 256]
    assert [up(n, 6) for n in (0, 1, 6, 7)] == [0, 6, 6, 12]


def test_work_is_compared_with_that_of_a_dense_product():
    assert no_less_work(2 * 128**2 - 1, 100, 200) is None
    assert (
        no_less_work(3 * 128**2, 100, 200) == "blocks filled up to 128 lanes make 1.5 times the work of a dense product"
    )


@pytest.mark.parametrize(
    ("starts", "size", "total"),
    [
        (range(0, 768, 192), 192, 768),
        (range(0, 21, 7), 7, 21),
        ((0, 300, 150), 130, 430),  # in any order, with gaps between
        ((256,), 128, 1000),
        (range(0, 780, 130), 130, 780),
    ],
)
def test_windows_are_whole_registers_around_their_blocks(starts, size, total):
    windows = around(starts, size, total)
    assert len(windows) == len(starts)
    row = 0
    for start, window in zip(starts, windows, strict=True):
        assert window.start % LANES == 0 and start - window.start == window.skip < LANES
        assert start + size <= window.stop < start + size + LANES
        assert window.stop % LANES == 0 or window.stop == total
        assert window.columns == slice(window.start, window.stop)
        assert window.row == row and window.rows == slice(row, row + window.stop - window.start)
        row += -(-(window.stop - window.start) // LANES) * LANES
    assert height(windows) == row


def test_no_windows_have_no_height():
    assert around((), 5, 10) == () and height(()) == 0


def test_overlapping_windows_add_up():
    windows = [Window(0, 256, 0, 0), Window(128, 384, 64, 256)]
    found = list(merged(windows, [np.full((1, 256), 1), np.full((1, 256), 2)]))
    assert [(c.start, c.stop, float(v[0, 0])) for c, v in found] == [(0, 128, 1), (128, 256, 3), (256, 384, 2)]
