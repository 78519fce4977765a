"""Masks against all six patterns of a group; packed storage bit for bit against its definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.sparse24 import mask24, pack, pack_int8, reference, unpack
from vit_jax.kernels.sparse24.packed import codes, compress, select
from vit_jax.types import UserError

SHAPES = [(4, 1), (12, 5), (64, 7)]


def pruned(rng, shape, dtype="float32"):
    kernel = jnp.asarray(rng.standard_normal(shape), dtype)
    return jnp.where(mask24(kernel), kernel, jnp.zeros_like(kernel))


@pytest.mark.parametrize("shape", SHAPES)
def test_two_of_four_stay_and_no_pattern_keeps_more(rng, shape):
    kernel = rng.standard_normal(shape).astype(np.float32)
    mask = np.asarray(mask24(kernel))
    assert mask.dtype == bool and mask.shape == shape
    assert np.all(mask.reshape(-1, 4, shape[1]).sum(1) == 2)
    np.testing.assert_array_equal(mask, reference.mask(kernel))


@pytest.mark.parametrize(
    ("group", "stay"),
    [
        ([0, 0, 0, 0], [0, 1]),
        ([1, -1, 1, -1], [0, 1]),
        ([0, 0, 0, 2], [0, 3]),
        ([1, 2, 2, 2], [1, 2]),
        ([3, 1, -3, 3], [0, 2]),
        ([np.nan, np.nan, np.nan, 9], [0, 1]),
        ([9, 1, 2, np.nan], [0, 3]),
        ([np.inf, 1, np.nan, -np.inf], [0, 2]),
    ],
)
def test_ties_and_nan(group, stay):
    for dtype in ("float32", "bfloat16"):
        mask = mask24(jnp.asarray(group, dtype)[:, None])
        assert np.flatnonzero(mask).tolist() == stay


@pytest.mark.first(2)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_keeps_every_bit(rng, dtype, shape):
    kernel = pruned(rng, shape, dtype)
    values, index = pack(kernel)
    assert values.shape == (shape[0] // 2, shape[1]) and values.dtype == kernel.dtype
    assert index.shape == (-(-shape[0] // 8), shape[1]) and index.dtype == jnp.uint8
    bits = {"float32": np.uint32, "bfloat16": np.uint16}[dtype]
    np.testing.assert_array_equal(np.asarray(unpack(values, index)).view(bits), np.asarray(kernel).view(bits))
    np.testing.assert_array_equal(reference.unpack(np.asarray(values, np.float64), index), kernel.astype(jnp.float32))
    np.testing.assert_array_equal(select(kernel, index), values)


def test_the_layout_as_it_is_documented():
    # Groups 0, 1 and 2 of one output: byte 0 holds groups 0 (low bits) and 2 (high bits), byte 1 group 1 alone.
    kernel = np.array([0, 5, 0, 6, 7, 0, 8, 0, 0, 0, 9, 1.0])[:, None].astype(np.float32)
    values, index = pack(kernel)
    assert values[:, 0].tolist() == [5, 7, 9, 6, 8, 1]
    assert index[:, 0].tolist() == [1 + 4 * 3 + 16 * (2 + 4 * 3), 0 + 4 * 2]


def test_places_ascend_also_where_fewer_than_two_stay(rng):
    kernel = np.where(rng.random((64, 50)) < 0.4, pruned(rng, (64, 50)), np.float32(0))
    values, index = pack(kernel)
    first, second = codes(index, 16)
    assert bool(jnp.all(first < second))
    np.testing.assert_array_equal(unpack(values, index), kernel)


def test_bytes_are_nine_and_five_sixteenths_of_dense_bfloat16(rng):
    kernel = pruned(rng, (64, 24))
    dense = kernel.astype(jnp.bfloat16).nbytes
    assert sum(a.nbytes for a in pack(kernel, jnp.bfloat16)) * 16 == dense * 9
    assert sum(a.nbytes for a in pack_int8(kernel)[:2]) * 16 == dense * 5


def test_a_kernel_that_is_not_sparse_is_counted_not_cut(rng):
    kernel = np.array(pruned(rng, (16, 6)))
    kernel[4:8, 1] = kernel[8:11, 5] = 1
    with pytest.raises(UserError, match="2 of the 24 groups of 4 hold more than 2 weights; prune the kernel"):
        pack(kernel)
    np.testing.assert_array_equal(unpack(*compress(kernel)), np.where(mask24(kernel), kernel, 0))
    for got, want in zip(jax.jit(compress)(kernel), compress(kernel), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", [(6, 4), (8,), (2, 4, 8)])
def test_shapes_without_groups_are_refused(shape):
    for function in (mask24, pack, compress):
        with pytest.raises(UserError, match=r"no groups of 4 along its input; .* leave this map dense"):
            function(np.ones(shape, np.float32))


def test_int8_is_symmetric_with_a_scale_for_each_output(rng):
    kernel = np.array(pruned(rng, (40, 6))) * np.array([1, 10, 1e-3, 1, 0, 1], np.float32)
    values, index, scale = pack_int8(kernel)
    top = np.abs(kernel).max(0)
    want_scale = np.where(top > 0, top / 127, 1)
    assert values.dtype == jnp.int8 and scale.dtype == jnp.float32
    np.testing.assert_allclose(scale, want_scale, rtol=1e-6)
    np.testing.assert_array_equal(unpack(values, index), np.round(kernel / want_scale[None]))
    assert set(np.abs(np.asarray(values)).max(0)) == {0, 127}
    dense = np.asarray(unpack(values, index, scale))
    assert dense.dtype == np.float32 and np.all(dense[kernel == 0] == 0)
    assert np.all(np.abs(dense - kernel) <= 0.5001 * want_scale)
    again = pack_int8(dense)
    np.testing.assert_array_equal(again[0], values)
    np.testing.assert_array_equal(unpack(*again[:2]), unpack(values, index))
