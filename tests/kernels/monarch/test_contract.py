"""One suite for every implementation of the Monarch product, against the definition in float64."""

import functools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels import dispatch
from vit_jax.kernels.monarch import IMPLEMENTATIONS, monarch, reference, to_dense
from vit_jax.types import UserError

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
CASES = {  # k, q, p, l, s; leading dimensions; input_parts; blocked
    "square": ((4, 8, 8, 4, 8), (3,), 1, False),
    "wider": ((2, 6, 4, 3, 5), (2, 1, 7), 2, True),
    "narrower": ((4, 8, 24, 2, 9), (), 4, False),
    "tokens to classes": ((4, 4, 5, 4, 250), (1, 197), 1, True),
}
RUNS = [
    *(("float32", case) for case in CASES),
    ("bfloat16", "square"),
    *(pytest.param("bfloat16", case, marks=pytest.mark.slow) for case in CASES if case != "square"),
]
named = pytest.mark.parametrize("name", [n for n in IMPLEMENTATIONS if n != "mosaic_gpu"])
"""``mosaic_gpu`` takes bfloat16 alone, and is interpreted in another way: test_mosaic_gpu.py."""


def every(test):
    return named(pytest.mark.usefixtures("interpreted")(test))


def draw(rng, factors, lead, dtype):
    """x, the parameters (both rounded to the compute type, kept in float32) and a cotangent of natural order."""
    K, q, p, L, S = factors
    shapes = ((*lead, K * p), (K, q, p), (L, S, K * q // L), (L * S,), (*lead, L * S))
    return [np.asarray(jnp.asarray(rng.standard_normal(s), dtype), np.float32) for s in shapes]


def from_parts(x, parts):
    return reference.to_parts(x, x.shape[-1] // parts)


@pytest.mark.first(6)
@every
@pytest.mark.parametrize(("dtype", "case"), RUNS)
def test_value_and_gradients_equal_float64(rng, name, dtype, case):
    factors, lead, parts, blocked = CASES[case]
    x, kernel_1, kernel_2, bias, g = draw(rng, factors, lead, dtype)
    blocks = factors[3] if blocked else 1

    @jax.jit
    def both(g, *args):
        f = functools.partial(monarch, input_parts=parts, blocked=blocked, implementation=name)
        y, pull = jax.vjp(f, *args)
        return y, *pull(g)

    arranged = jnp.asarray(reference.to_parts(x, parts), dtype), jnp.asarray(reference.to_parts(g, blocks), dtype)
    y, dx, *rest = both(arranged[1], arranged[0], kernel_1, kernel_2, bias)
    rows, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    want = [reference.product(rows, kernel_1, kernel_2, bias), *reference.gradients(rows, kernel_1, kernel_2, g)]
    got = [from_parts(np.asarray(y, np.float64), blocks), from_parts(np.asarray(dx, np.float64), parts), *rest]
    assert [v.dtype for v in (y, dx, *rest)] == [dtype, dtype, *["float32"] * 3]
    assert y.shape == (*lead, g.shape[-1]) and dx.shape == x.shape
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.reshape(a, b.shape), b, rtol=0, atol=TOLERANCE[dtype] * np.abs(b).max())


@pytest.mark.first(1)
@every
def test_blocked_maps_in_a_chain_equal_natural_ones(rng, name):
    x, kernel_1, kernel_2, bias, _ = draw(rng, (4, 8, 6, 4, 10), (2, 5), "float32")
    _, second_1, second_2, second_bias, _ = draw(rng, (2, 6, 20, 3, 8), (), "float32")

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3))
    def natural(x, kernel_1, bias, second_1):
        h = jnp.tanh(monarch(x, kernel_1, kernel_2, bias, implementation=name))
        return jnp.sum(jnp.sin(monarch(h, second_1, second_2, second_bias, implementation=name)))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3))
    def chained(x, kernel_1, bias, second_1):
        h = jnp.tanh(monarch(x, kernel_1, kernel_2, bias, blocked=True, implementation=name))
        return jnp.sum(jnp.sin(monarch(h, second_1, second_2, second_bias, input_parts=4, implementation=name)))

    args = x, kernel_1, bias, second_1
    for a, b in zip(jax.tree.leaves(chained(*args)), jax.tree.leaves(natural(*args)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE["float32"] * np.abs(b).max())


@named
@pytest.mark.usefixtures("interpreted_simply")
def test_vmap_remat_and_no_bias(rng, name):
    x, kernel_1, kernel_2, _, _ = draw(rng, (2, 4, 3, 2, 5), (3, 4), "float32")
    f = functools.partial(monarch, implementation=name)
    want = reference.product(x.reshape(-1, 6), kernel_1, kernel_2).reshape(3, 4, 10)
    scaled = want * np.array([1, 2, 3])[:, None, None]

    @jax.jit
    def rows(x, kernel_1, several, kernel_2):
        one, both = (jax.vmap(f, (0, axis, None)) for axis in (None, 0))
        return one(x, kernel_1, kernel_2), both(x, several, kernel_2)

    one, several = rows(x, kernel_1, np.stack([kernel_1, 2 * kernel_1, 3 * kernel_1]), kernel_2)
    np.testing.assert_allclose(one, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(several, scaled, rtol=1e-4, atol=1e-5)
    loss = lambda k: jnp.sum(jnp.square(f(x, k, kernel_2)))  # noqa: E731
    plain = jax.jit(jax.grad(loss))(kernel_1)
    np.testing.assert_allclose(jax.jit(jax.grad(jax.checkpoint(loss)))(kernel_1), plain, rtol=1e-6)


@every
def test_parameters_in_half_precision(rng, name):
    x, *factors, bias, g = (jnp.asarray(a, jnp.bfloat16) for a in draw(rng, (2, 4, 3, 2, 5), (7,), "bfloat16"))

    def both(g, *args):
        y, pull = jax.vjp(functools.partial(monarch, implementation=name), *args)
        return y, *pull(g)

    assert {v.dtype for v in jax.eval_shape(both, g, x, *factors, bias)} == {jnp.dtype("bfloat16")}


@pytest.mark.first(2)
@named
@pytest.mark.parametrize("rows", [16, 3])  # 3 x 2 rows do not divide among 4 devices
def test_on_a_mesh_equals_one_device(rng, same_on_a_mesh, name, rows):
    x, *parameters, g = draw(rng, (2, 8, 8, 4, 4), (rows, 2), "float32")
    same_on_a_mesh(functools.partial(monarch, blocked=True, implementation=name), x, parameters, g)


def test_the_weight_multiplied_out(rng):
    _, kernel_1, kernel_2, *_ = draw(rng, (2, 6, 4, 3, 5), (), "float32")
    weight = to_dense(jnp.asarray(kernel_1, jnp.bfloat16), kernel_2)
    assert weight.dtype == jnp.float32
    rounded = np.asarray(jnp.asarray(kernel_1, jnp.bfloat16), np.float64)
    np.testing.assert_allclose(weight, reference.dense(rounded, kernel_2), rtol=1e-5, atol=1e-5)


def test_who_runs_off_a_tpu(rng, caplog):
    dispatch.say.cache_clear()
    x, kernel_1, kernel_2, *_ = draw(rng, (2, 4, 3, 2, 5), (7,), "float32")
    with caplog.at_level(logging.WARNING):
        got = monarch(x, kernel_1, kernel_2)
    np.testing.assert_array_equal(got, monarch(x, kernel_1, kernel_2, implementation="xla"))
    assert caplog.messages == []
    assert list(IMPLEMENTATIONS) == ["mosaic_tpu", "mosaic_gpu", "xla", "dense"]


@pytest.mark.parametrize(
    ("shapes", "parts", "sentence"),
    [
        (((7,), (2, 4, 3), (2, 5, 4)), 1, "x has 7 features, kernel_1 (2, 4, 3) takes k * p = 6; make them equal."),
        (((6,), (2, 4, 3), (2, 5, 5)), 1, "gives k * q = 8 values, kernel_2 (2, 5, 5) takes l * r = 10; make"),
        (((6,), (2, 3, 3), (2, 5, 3)), 1, "has q = 3 outputs, which 2 blocks of kernel_2 cannot share; make q a"),
        (((6,), (2, 4, 3), (2, 5, 4)), 2, "input_parts=2 does not divide the p = 3 inputs of a block; give the"),
        (((6,), (2, 4, 3), (2, 5, 4)), 0, "input_parts=0 does not divide"),
        (((6,), (8, 3), (2, 5, 4)), 1, "have shapes (8, 3) and (2, 5, 4); give kernel_1 [k, q, p]"),
        (((6,), (2, 4, 3), (2, 5, 4), (9,)), 1, "bias has shape (9,), the product l * s = 10 outputs; give (10,)."),
    ],
)
def test_shapes_that_do_not_fit(shapes, parts, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        monarch(*map(np.zeros, shapes), input_parts=parts)
