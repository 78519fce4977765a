"""The int8 product: the integers exactly, what is scaled against float64, gradients, and what int32 holds."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.int8 import int8, xla
from vit_jax.kernels.int8.rounding import quantise
from vit_jax.kernels.products import matmul
from vit_jax.plan import hlo
from vit_jax.types import UsageError, UserError

SHAPES = [((5,), 16, 24), ((2, 3), 37, 5), ((), 8, 1), ((1, 4, 1), 1, 9)]
"""Leading axes of x, inputs, outputs."""
TOLERANCE = {"float32": 1e-6, "bfloat16": 2.0**-8}


def problem(rng, lead, inputs, outputs, dtype="float32"):
    """x, weights of which the first output has none, scale and bias."""
    kernel = rng.standard_normal((inputs, outputs)).astype(np.float32)
    kernel[:, 0] = 0
    values, scale = jax.jit(quantise, static_argnums=1)(jnp.asarray(kernel), 0)
    bias = jnp.asarray(rng.standard_normal(outputs), jnp.float32)
    return jnp.asarray(rng.standard_normal((*lead, inputs)), dtype), values, scale[0], bias


@functools.cache
def program(activations, implementation=None):
    return jax.jit(functools.partial(int8, activations=activations, implementation=implementation))


def wide(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("lead", "inputs", "outputs"), SHAPES)
def test_weight_only_is_the_product_with_the_stored_kernel(rng, lead, inputs, outputs, dtype):
    """And no farther from that with the kernel that was stored than half a step for each weight."""
    arguments = problem(rng, lead, inputs, outputs, dtype)
    x, values, scale, bias = wide(*arguments)
    got = program("float")(*arguments)
    assert got.dtype == dtype and got.shape == (*lead, outputs)
    size = np.abs(x) @ np.abs(values * scale) + np.abs(bias)
    assert np.all(np.abs(np.asarray(got, np.float64) - (x @ (values * scale) + bias)) <= TOLERANCE[dtype] * size)


def test_the_error_of_rounded_weights_is_bounded(rng):
    kernel = jnp.asarray(rng.standard_normal((64, 9)) * 10.0 ** np.arange(-4, 5), jnp.float32)
    values, scale = quantise(kernel, 0)
    x = jnp.asarray(rng.standard_normal((11, 64)), jnp.float32)
    got = np.asarray(program("float")(x, values, scale[0], None), np.float64)
    x, kernel, scale = wide(x, kernel, scale)
    assert np.all(np.abs(got - x @ kernel) <= 0.501 * scale * np.abs(x).sum(1, keepdims=True))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("lead", "inputs", "outputs"), SHAPES)
def test_integers_are_multiplied_and_scaled_twice(rng, lead, inputs, outputs, dtype):
    arguments = problem(rng, lead, inputs, outputs, dtype)
    steps, rows = jax.jit(quantise, static_argnums=1)(arguments[0], -1)
    steps, rows, values, scale, bias = wide(steps, rows, *arguments[1:])
    want = (steps @ values) * rows * scale + bias
    got = np.asarray(program("dynamic")(*arguments), np.float64)
    rounding = TOLERANCE[dtype] * (np.abs(want) + np.abs(bias))
    assert np.all(np.abs(got - want) <= rounding)


def exact(rng, implementation):
    """Bytes that rounding leaves as they are, also the largest there are, and their product."""
    x, values = (rng.integers(-127, 128, shape) for shape in ((6, 513), (513, 10)))
    x[:, 0], x[0], values[:, 0] = 127, 127, 127
    x[1], values[:, 1] = -127, -127
    bytes_ = jnp.asarray(x, jnp.float32), jnp.asarray(values, jnp.int8), jnp.ones(10), None
    return program("dynamic", implementation)(*bytes_), x @ values


def test_the_integers_are_exact(rng):
    got, want = exact(rng, "xla")
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("activations", ["float", "dynamic"])
def test_rows_of_zeros_and_rows_that_are_not_finite(rng, activations):
    x, values, scale, bias = problem(rng, (4,), 16, 6)
    x = x.at[0].set(0).at[1, 3].set(jnp.nan).at[2, 5].set(jnp.inf)
    got = np.asarray(program(activations)(x, values, scale, bias))
    np.testing.assert_array_equal(got[0], bias)
    assert np.all(np.isnan(got[1])) and not np.any(np.isfinite(got[2, values[5] != 0]))
    assert np.all(np.isfinite(got[3])) and (activations == "float" or np.all(np.isnan(got[2])))
    np.testing.assert_array_equal(got[3, 0], bias[0])  # no weights


@pytest.mark.parametrize("activations", ["float", "dynamic"])
def test_gradients_are_those_of_the_stored_kernel(rng, activations):
    x, values, scale, bias = problem(rng, (2, 3), 16, 6)
    g = jnp.asarray(rng.standard_normal((2, 3, 6)), jnp.float32)
    f = functools.partial(int8, activations=activations, implementation="xla")
    dx, dscale, dbias = jax.jit(lambda x, s, b: jax.vjp(lambda x, s, b: f(x, values, s, b), x, s, b)[1](g))(
        x, scale, bias
    )
    x, values, scale, g = wide(x, values, scale, g)
    np.testing.assert_allclose(dx, g @ (values * scale).T, atol=1e-5)
    np.testing.assert_allclose(dscale, np.einsum("abi,io,abo->o", x, values, g), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(dbias, g.sum((0, 1)), atol=1e-5)


def test_what_does_not_fit_is_refused():
    shapes = [jax.ShapeDtypeStruct(*s) for s in (((3, 8), "float32"), ((8, 4), "int8"), ((4,), "float32"))]
    x, values, scale = shapes
    for wrong in (
        (x, jax.ShapeDtypeStruct((8, 4), "float32"), scale),
        (x, values, jax.ShapeDtypeStruct((8,), "float32")),
    ):
        with pytest.raises(UserError, match=r"x with 8 inputs, .* give int8 values \[8, out\] and scale \[out\]"):
            jax.eval_shape(int8, *wrong)
    with pytest.raises(UsageError, match="unknown implementation of int8 product 'vnni'"):
        jax.eval_shape(functools.partial(int8, implementation="vnni"), *shapes)
    assert xla.too_long(133_144, 127) is None
    long = jax.ShapeDtypeStruct((3, 133_145), "float32"), jax.ShapeDtypeStruct((133_145, 4), "int8"), scale
    with pytest.raises(UserError, match="133145 inputs, more than 133144, may not fit into int32"):
        jax.eval_shape(functools.partial(int8, activations="dynamic", implementation="xla"), *long)


def test_a_tpu_multiplies_bytes(tpu_chips):
    """In fewer of its compiler's cycles than bfloat16; what rounds the rows comes on top."""
    place = jax.sharding.SingleDeviceSharding(tpu_chips("v5e:2x2")[0])

    def product(run, kind, *vectors):
        arguments = [((1576, 768), "bfloat16"), ((768, 3072), kind), *[((3072,), "float32")] * len(vectors)]
        text = jax.jit(run).lower(*(jax.ShapeDtypeStruct(*a, sharding=place) for a in arguments)).compile().as_text()
        program = hlo.parse(text)
        ops = [run.op for run in hlo.executed(program) if not run.fused and run.op.path.endswith("dot_general")]
        return sum(op.cycles for op in ops), text

    low, _ = product(matmul, "bfloat16", "bias")
    cycles, text = product(
        functools.partial(int8, activations="dynamic", implementation="xla"), "int8", "scale", "bias"
    )
    assert re.search(r"s32\[1576,3072[^=]* convolution\(", text) and 0 < cycles < low
