"""The packed product and its gradients against float64, by way of the public function."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.sparse24 import reference, sparse24
from vit_jax.kernels.sparse24.packed import codes, compress, quantise
from vit_jax.types import UsageError, UserError

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
TYPES = [(dtype, storage) for dtype in TOLERANCE for storage in ("float32", "bfloat16", "int8")]
CASES = [((2, 19), 40, 13, *types) for types in TYPES] + [
    ((5,), 12, 7, "float32", "float32"),
    ((2, 1, 3), 8, 4, "bfloat16", "int8"),
    ((), 16, 3, "float32", "int8"),
]


@functools.partial(jax.jit, static_argnums=1)
def packed(kernel, storage):
    """The packed kernel in ``storage`` and its scale, None but for integers."""
    return quantise(*compress(kernel)) if storage == "int8" else (*compress(kernel, storage), None)


def problem(rng, lead, size, out, dtype, storage):
    x, g = (jnp.asarray(rng.standard_normal((*lead, n)), dtype) for n in (size, out))
    bias = jnp.asarray(rng.standard_normal(out), jnp.float32)
    values, index, scale = packed(rng.standard_normal((size, out)).astype(np.float32) / size**0.5, storage)
    return x, values, index, bias, scale, g


def close(got, want, dtype):
    assert got.dtype == dtype
    size = np.abs(want).max()
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=TOLERANCE[dtype] * size)


@pytest.mark.first(4)
@pytest.mark.parametrize(("lead", "size", "out", "dtype", "storage"), CASES)
def test_value_and_gradients_equal_float64(rng, lead, size, out, dtype, storage):
    x, values, index, bias, scale, g = problem(rng, lead, size, out, dtype, storage)
    low = np.asarray(values.astype(dtype), np.float64)
    x64, g64, s64 = (np.asarray(a, np.float64) for a in (x, g, 1.0 if scale is None else scale))

    def run(x, bias, weights):
        weights = {"values": values, "scale": weights} if storage == "int8" else {"values": weights}
        return sparse24(x, index=index, bias=bias, **weights)

    @jax.jit
    def both(*args):
        y, pull = jax.vjp(run, *args)
        return y, *pull(g)

    y, dx, dbias, dweights = both(x, bias, scale if storage == "int8" else values)
    close(y, reference.sparse24(x64, low, np.asarray(index), bias, scale), dtype)
    kernel = reference.unpack(low, np.asarray(index))
    outer = x64.reshape(-1, size).T @ g64.reshape(-1, out)
    close(dx, (g64 * s64) @ kernel.T, dtype)
    close(dbias, g64.reshape(-1, out).sum(0), "float32")
    if storage == "int8":
        close(dweights, (kernel * outer).sum(0), "float32")
        return
    groups, columns = np.arange(size // 4)[:, None], np.arange(out)[None]
    rows = [4 * groups + np.asarray(place) for place in codes(index, size // 4)]
    close(dweights, np.concatenate([outer[row, columns] for row in rows]), storage)


def test_scale_and_float_values_together(rng):
    x, values, index, bias, _, g = problem(rng, (6,), 16, 5, "float32", "float32")
    scale = jnp.asarray(rng.random(5) + 0.5, jnp.float32)

    @jax.jit
    def run(values, scale):
        both = jax.vjp(lambda v, s: sparse24(x, v, index, bias, scale=s), values, scale)[1](g)
        (direct,) = jax.vjp(lambda w: sparse24(x, w, index, bias), values * scale[None])[1](g)
        return *both, direct

    dvalues, dscale, direct = map(np.asarray, run(values, scale))
    np.testing.assert_allclose(dvalues, direct * np.asarray(scale), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dscale, (direct * np.asarray(values)).sum(0), rtol=1e-5, atol=1e-5)


def test_integers_without_scale_still_give_a_gradient_of_x(rng):
    x, values, index, _, _, g = problem(rng, (3,), 16, 5, "float32", "int8")
    dx = jax.jit(jax.grad(lambda x: jnp.sum(sparse24(x, values, index) * g)))(x)
    close(dx, np.asarray(g, np.float64) @ reference.unpack(np.asarray(values), np.asarray(index)).T, "float32")


def test_products_take_low_precision_operands_and_sum_in_float32(rng):
    x, values, index, bias, _, _ = problem(rng, (2, 3), 16, 5, "bfloat16", "float32")
    loss = lambda *a: jnp.sum(jnp.square(sparse24(a[0], a[1], index, a[2]).astype(jnp.float32)))  # noqa: E731
    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, values, bias).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3
    assert all(line.count("bf16>") == 2 and line.rstrip().split("->")[1].count("f32>") == 1 for line in products)


def test_vmap_and_jit(rng):
    x, values, index, bias, _, _ = problem(rng, (4, 3), 16, 5, "float32", "float32")
    want = sparse24(x, values, index, bias)
    rows = jax.jit(jax.vmap(lambda x: sparse24(x, values, index, bias)))(x)
    np.testing.assert_allclose(rows, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jax.jit(sparse24)(x, values, index, bias), want, rtol=1e-6, atol=1e-6)


def test_what_does_not_belong_together_is_a_sentence(rng):
    x, values, index, *_ = problem(rng, (3,), 16, 5, "float32", "float32")
    for wrong in ((x[:, :12], values, index), (x, values[:6], index), (x, values, index[:, :4])):
        with pytest.raises(UserError, match="do not belong together; give values"):
            sparse24(*wrong)
    with pytest.raises(UsageError, match="unknown implementation of sparse24 'mosaic'; did you mean 'mosaic_tpu'"):
        sparse24(x, values, index, implementation="mosaic")
