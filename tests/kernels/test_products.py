"""The product rule against float64 NumPy, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.products import bias_gradient, differentiable, dot, dots, matmul, outer, shift

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def both(g, *args):
    y, pull = jax.vjp(matmul, *args)
    return y, *pull(g)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "features"), [((5, 7), 3), ((2, 3, 7), 5), ((2, 1, 3, 4), 9)])
def test_matmul_and_gradients_equal_float64(rng, monkeypatch, dtype, shape, features, platform):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    x = jnp.asarray(rng.standard_normal(shape), dtype)
    w, b = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((shape[-1], features), (features,)))
    g = jnp.asarray(rng.standard_normal((*shape[:-1], features)), dtype)
    y, dx, dw, db = jax.jit(lambda *args: both(*args))(g, x, w, b)  # traced for this platform
    x64, w64, g64 = (np.asarray(a.astype(dtype), np.float64) for a in (x, w, g))
    rows = tuple(range(len(shape) - 1))
    expected = (x64 @ w64 + np.asarray(b), g64 @ w64.T, np.tensordot(x64, g64, (rows, rows)), g64.sum(rows))
    types = (dtype, dtype, "float32", "float32")
    for got, want, kind in zip((y, dx, dw, db), expected, types, strict=True):
        assert got.dtype == kind
        rounding = TOLERANCE[kind]
        np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rounding, atol=rounding)


def test_parameters_keep_their_type_and_operands_are_low(rng):
    x = jnp.asarray(rng.standard_normal((3, 4)), jnp.bfloat16)
    w = jnp.asarray(rng.standard_normal((4, 2)), jnp.bfloat16)
    assert jax.eval_shape(both, jax.ShapeDtypeStruct((3, 2), jnp.bfloat16), x, w)[2].dtype == jnp.bfloat16
    loss = lambda x, w: jnp.sum(matmul(x, w).astype(jnp.float32))  # noqa: E731
    jaxpr = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, w.astype(jnp.float32)))
    assert jaxpr.count("preferred_element_type=float32") == jaxpr.count("dot_general") == 3


def test_gpus_round_in_the_product_but_for_gradients_of_kernels(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, g = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((3, 4), (3, 2)))
    jaxpr = str(jax.make_jaxpr(both)(g, x, jnp.zeros((4, 2)), jnp.zeros(2)))
    assert jaxpr.count("preferred_element_type=bfloat16") == 2 and jaxpr.count("preferred_element_type=float32") == 1


@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8)])
def test_transposed_weights_and_results_run_compiled(rng, shape):
    # XLA:CPU refuses bfloat16 products into which it has folded a transposition: tied weights must not meet that.
    table = jnp.asarray(rng.standard_normal((10, 8)), jnp.float32)
    x = jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)

    def loss(table, x):
        return jnp.sum(jnp.square(jnp.swapaxes(matmul(x, table.T), -1, -2).astype(jnp.float32)))

    dtable = jax.jit(lambda t, x: jax.grad(loss)(t, x) * 2.0)(table, x)
    wide = jax.jit(jax.grad(loss))(table, x.astype(jnp.float32)) * 2.0
    np.testing.assert_allclose(dtable, wide, rtol=0.05, atol=0.02 * float(jnp.max(jnp.abs(wide))))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dot_and_outer_sum_in_float32(rng, dtype):
    a, b = (jnp.asarray(rng.standard_normal(s), dtype) for s in ((2, 300, 3), (2, 300, 5)))
    a64, b64 = (np.asarray(v, np.float64) for v in (a, b))
    np.testing.assert_allclose(outer(a, b), np.einsum("xyi,xyo->io", a64, b64), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dot(a, b[0], 1, 0), np.einsum("xyi,yo->xio", a64, b64[0]), rtol=1e-4, atol=1e-4)
    assert outer(a, b).dtype == dot(a, b[0], 1, 0).dtype == jnp.float32


def test_many_products_at_once(rng):
    a, b = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((2, 3, 4), (2, 5, 4)))
    np.testing.assert_allclose(dots(a, b, 2, 2), np.einsum("gik,gjk->gij", a, b), rtol=1e-5, atol=1e-5)


def test_the_bias_as_it_is_added_and_its_gradient():
    bias, g = jnp.asarray([1, 2], jnp.bfloat16), jnp.ones((3, 5, 2), jnp.bfloat16)
    assert shift(bias, 2).dtype == jnp.float32 and shift(bias, 2).tolist() == [[1, 2]]
    assert shift(None, 3).tolist() == [[0, 0, 0]] and bias_gradient(g, None) is None
    assert bias_gradient(g, bias).dtype == jnp.bfloat16 and bias_gradient(g, bias).tolist() == [15, 15]


def test_gradients_from_the_arguments_alone():
    @functools.partial(differentiable, static=1)
    def gradients(n, x, index, bias, g):
        return 10 * n * g, None, None if bias is None else g

    @gradients
    def f(n, x, index, bias):
        return n * x

    x, index = jnp.arange(3.0), jnp.zeros(3, jnp.int32)
    y, pull = jax.vjp(lambda x, bias: f(2, x, index, bias), x, x)
    assert y.tolist() == [0, 2, 4] and [d.tolist() for d in pull(x)] == [[0, 20, 40], [0, 1, 2]]
    assert jax.grad(lambda x: f(3, x, index, None).sum())(x).tolist() == [30, 30, 30]
