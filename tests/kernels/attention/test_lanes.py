"""Pieces of rows at their lanes: read, moved, alone, and written together again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.attention import lanes
from vit_jax.kernels.attention.lanes import Piece
from vit_jax.kernels.windows import up


@pytest.mark.parametrize(("size", "count"), [(64, 2), (128, 1), (80, 8), (72, 16), (88, 16), (96, 4), (16, 8)])
def test_heads_that_fill_whole_registers(size, count):
    assert lanes.group(size) == count
    assert [n for n in range(1, count + 1) if n * size % 128 == 0] == [count]


def test_pieces_are_in_the_order_of_the_product():
    rows = np.arange(2 * 3 * 24).reshape(2, 3, 24)
    for h, (*parts, head) in enumerate(lanes.pieces(2, 24)):
        assert [list(range(p.starts[0], p.starts[0] + p.size)) for p in parts] == rows[h].tolist()
        assert (head.starts, head.size) == ((h * 24,), 24)


def test_pieces_in_blocks_are_those_of_a_reshaped_row():
    rows = np.arange(4 * 2 * 3 * 6).reshape(4, 2, 3, 6)
    for h, (*parts, head) in enumerate(lanes.pieces(2, 24, 4)):
        for i, part in enumerate(parts):
            assert [list(range(s, s + part.size)) for s in part.starts] == rows[:, h, i].tolist()
        assert head.starts == tuple((b * 2 + h) * 6 for b in range(4)) and head.channels == 24


@pytest.mark.parametrize("size", [16, 64, 80, 128])
def test_what_is_read_is_written(rng, size):
    x = rng.standard_normal((1, 3, 8 * size + 24)).astype("float32")
    ref, out = jnp.asarray(x), np.full((1, 3, up(8 * size, 128)), np.nan, "float32")
    pieces = [Piece((i * size,), size) for i in range(8)]

    class Written:
        dtype = out.dtype

        def __setitem__(self, at, value):
            out[at] = value

    found = jax.jit(lambda: [lanes.only(lanes.read(ref, p, 8 * size, p.lane), p) for p in pieces])()
    for piece, value in zip(pieces, found, strict=True):
        (start,) = piece.starts
        columns = [(start + i) % 128 for i in range(size)]
        np.testing.assert_array_equal(value[:, np.array(columns)], x[0, :, start : start + size])
        assert np.count_nonzero(value) == 3 * size
    lanes.write(Written(), zip(pieces, found, strict=True))
    np.testing.assert_array_equal(out[..., : 8 * size], x[..., : 8 * size])


def test_what_lies_behind_the_last_column_is_not_read():
    x = jnp.full((1, 2, 256), jnp.nan).at[..., :192].set(1.0)
    last = lanes.read(x, Piece((128,), 64), 192, 0)
    np.testing.assert_array_equal(last, np.repeat([[1.0, 0.0]], 2, axis=0).repeat(64, axis=1))
