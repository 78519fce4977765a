"""Cases of kernels: their dense weight is that of the product, their floor is counted, what is wrong is not timed."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.bench.kernels import CASES, compare
from vit_jax.kernels.case import Case
from vit_jax.kernels.dispatch import Implementation
from vit_jax.types import UserError


@pytest.mark.first(2)
@pytest.mark.parametrize("op", CASES)
def test_a_case_is_its_dense_product(op):
    case = CASES[op]()(5, 32, 64, jnp.float32)
    for name in case.here():
        got = jax.jit(functools.partial(case.run, name))(case.x, *case.parameters)
        np.testing.assert_allclose(got, np.asarray(case.x) @ np.asarray(case.weight), atol=1e-5)
    assert "mosaic_tpu" not in case.here()
    assert case.bytes == 4 * 5 * (32 + 64) + sum(p.nbytes for p in case.parameters)
    assert case.flops == 2 * 5 * (32 * 64 if op in ("sparse24", "int8") else sum(p.size for p in case.parameters))


@pytest.mark.first(2)
@pytest.mark.parametrize("op", CASES)
def test_a_case_has_the_gradients_of_its_dense_product(op):
    case = CASES[op]()(5, 32, 64, jnp.float32)
    g = jax.random.normal(jax.random.key(1), (5, 64))
    want = case.gradients(g)
    np.testing.assert_allclose(want[0], np.asarray(g, np.float64) @ np.asarray(case.weight, np.float64).T, atol=1e-9)
    assert [d is None for d in want[1:]] == [not jnp.issubdtype(p.dtype, jnp.floating) for p in case.parameters]
    for name in case.here():
        run = functools.partial(case.run, name)
        gradients = jax.jit(lambda g, *args, run=run: jax.vjp(run, *args)[1](g))(g, case.x, *case.parameters)
        for ours, true in zip(gradients, want, strict=True):
            assert true is None or np.abs(ours - true).max() <= 1e-5 * np.abs(true).max()


@dataclasses.dataclass(frozen=True)
class Fake:
    """``x @ (w * (1 + index) * s)`` with an error in one of its results."""

    wrong: str

    def __call__(self, rows, inputs, outputs, dtype):
        keys = jax.random.split(jax.random.key(0), 3)
        x = jax.random.normal(keys[0], (rows, inputs), dtype)
        parameters = jax.random.normal(keys[1], (inputs, outputs)), jnp.arange(outputs), 1 + jnp.arange(8.0)
        dense = lambda w, i, s: w * (1 + i).astype(jnp.float32)[None] * s[None]  # noqa: E731
        product = jax.custom_vjp(lambda x, *p: self.off("y", x @ dense(*p).astype(x.dtype)))
        product.defvjp(lambda x, *p: (product(x, *p), (x, p)), functools.partial(self.backward, dense))
        table = {"ours": Implementation(product)}
        return Case(lambda name, *args: table[name].run(*args), x, parameters, dense, table, flops=1.0, bytes=1.0)

    def backward(self, dense, saved, g):
        x, (w, i, s) = saved
        wide = x.astype(jnp.float32), g.astype(jnp.float32)
        dw, ds = jax.vjp(lambda w, s: wide[0] @ dense(w, i, s), w, s)[1](wide[1])
        dx = (wide[1] @ dense(w, i, s).T).astype(x.dtype)
        return self.off("x", dx), self.off("w", dw), None, self.off("s", ds)

    def off(self, what, value):
        return value.at[(0,) * value.ndim].add(0.25 * jnp.max(jnp.abs(value))) if what == self.wrong else value


WRONG = [
    ("y", "'ours' is wrong by 0.2"),
    ("x", "'ours' is wrong: its gradient of x is off by 0.2"),
    ("w", "'ours' is wrong: its gradient of parameter 1 is off by 0.2"),
    ("s", "'ours' is wrong: its gradient of parameter 3 is off by 0.2"),
    ("none", ""),
]


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("wrong", "said", "dtype"),
    [
        *((*case, "float32") for case in WRONG),
        *(pytest.param(*case, "bfloat16", marks=[] if case[0] == "none" else pytest.mark.slow) for case in WRONG),
    ],
)
def test_a_wrong_gradient_is_not_timed(wrong, said, dtype):
    case = Fake(wrong)(5, 6, 8, dtype)
    if not said:
        assert [row["error"] < 2e-2 for row in compare(case, rounds=1, backward=True)] == [True]
        return
    with pytest.raises(UserError, match=re.escape(said)):
        compare(case, rounds=1, backward=True)
    if wrong != "y":  # gradients that are not timed are not compared
        assert compare(case, rounds=1)[0]["implementation"] == "ours"


def test_a_wrong_kernel_is_not_timed():
    case = CASES["monarch"]()(3, 32, 64, "float32")
    wrong = dataclasses.replace(case, dense=lambda *p: case.dense(*p).at[0, 0].add(1.0))
    with pytest.raises(UserError, match="'xla' is wrong by "):
        compare(wrong, rounds=1)
