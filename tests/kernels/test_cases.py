"""The cases of the kernel bench: their dense weight is that of the product, their floor is counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.cases import CASES


@pytest.mark.parametrize("op", CASES)
def test_a_case_is_its_dense_product(op):
    case = CASES[op]()(5, 32, 64, jnp.float32)
    for name in case.here():
        got = jax.jit(functools.partial(case.run, name))(case.x, *case.parameters)
        np.testing.assert_allclose(got, np.asarray(case.x) @ np.asarray(case.weight), atol=1e-5)
    assert "mosaic_tpu" not in case.here()
    assert case.bytes == 4 * 5 * (32 + 64) + sum(p.nbytes for p in case.parameters)
    assert case.flops == 2 * 5 * (32 * 64 if op == "sparse24" else sum(p.size for p in case.parameters))


@pytest.mark.parametrize("op", CASES)
def test_a_case_has_the_gradients_of_its_dense_product(op):
    case = CASES[op]()(5, 32, 64, jnp.float32)
    g = jax.random.normal(jax.random.key(1), (5, 64))
    want = case.gradients(g)
    np.testing.assert_allclose(want[0], np.asarray(g, np.float64) @ np.asarray(case.weight, np.float64).T, atol=1e-9)
    assert [d is None for d in want[1:]] == [p.dtype == jnp.uint8 for p in case.parameters]
    for name in case.here():
        run = functools.partial(case.run, name)
        gradients = jax.jit(lambda g, *args, run=run: jax.vjp(run, *args)[1](g))(g, case.x, *case.parameters)
        for ours, true in zip(gradients, want, strict=True):
            assert true is None or np.abs(ours - true).max() <= 1e-5 * np.abs(true).max()
