"""Which implementations of a case run on this machine, and what they are to compute."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.kernels.case import Case
from vit_jax.kernels.dispatch import Implementation


def case(x, *parameters, dense=lambda w: w, table=None):
    return Case(lambda name, x: x, x, parameters, dense, table or {}, flops=0, bytes=0)


def test_only_implementations_of_this_platform_are_here():
    table = {name: Implementation(lambda x: x, platform=name) for name in ("cpu", "tpu", "gpu")}
    table["anywhere"] = Implementation(lambda x: x)
    assert case(jnp.ones((2, 3)), jnp.eye(3), table=table).here() == [jax.default_backend(), "anywhere"]


def test_the_weight_is_that_of_the_parameters(rng):
    w, s = (jnp.asarray(rng.standard_normal(shape), "float32") for shape in ((3, 4), (4,)))
    x = jnp.asarray(rng.standard_normal((5, 3)), "bfloat16")
    found = case(x, w, s, dense=lambda w, s: w * s[None])
    np.testing.assert_array_equal(found.weight, w * s[None])
    want = np.asarray(x, np.float64) @ np.asarray(w * s[None], np.float64)
    assert found.value().dtype == np.float64
    np.testing.assert_allclose(found.value(), want, rtol=1e-12)


def test_gradients_are_those_of_the_dense_product_and_none_of_integers(rng):
    w, s, v = (rng.standard_normal(shape).astype("float32") for shape in ((3, 2), (4,), (2, 4)))
    order = np.array([2, 0, 3, 1])
    x, g = (jnp.asarray(rng.standard_normal(shape), "bfloat16") for shape in ((5, 3), (5, 4)))
    parameters = jnp.asarray(w), jnp.asarray(order), jnp.asarray(s, "bfloat16"), jnp.asarray(v)
    found = case(x, *parameters, dense=lambda w, i, s, v: (w @ v)[:, i] * s.astype(jnp.float32)[None])
    dx, dw, none, ds, dv = found.gradients(g)
    x, g, s = (np.asarray(a, np.float64) for a in (x, g, parameters[2]))
    w, v = w.astype(np.float64), v.astype(np.float64)
    back = x.T @ g
    placed = np.zeros((3, 4))
    placed[:, order] = back * s
    want = g @ ((w @ v)[:, order] * s).T, placed @ v.T, (back * (w @ v)[:, order]).sum(0), w.T @ placed
    assert none is None
    for a, b in zip((dx, dw, ds, dv), want, strict=True):
        assert a.dtype == np.float64  # of a bfloat16 parameter, too, not rounded to its type
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max())
