"""Flat equations: calls inlined, what follows from parameters computed, what nobody reads left out."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.export.onnx.trace import trace


@jax.custom_vjp
def doubled(x):
    return jax.nn.relu(x) * 2.0


doubled.defvjp(lambda x: (doubled(x), None), lambda _, g: (g,))


def run(params, x):
    """Four calls, one inside another, of which none is left."""
    weight = params["a"]["w"].T * 2.0 + jnp.ones((2, 3))
    jnp.sin(x)  # nobody reads it
    with jax.named_scope("head"):
        return jax.checkpoint(jax.jit(lambda x: doubled(x) @ weight))(x) + params["b"].reshape(1, 3)


def test_a_function_becomes_a_list():
    params = {"a": {"w": np.ones((3, 2), np.float32)}, "b": np.arange(3, dtype=np.float32)}
    traced = trace(run, params, (2,), np.float32)
    assert [e.name for e in traced.equations] == ["max", "mul", "dot_general", "add"]
    assert traced.output.shape == (traced.batch, 3) and traced.input.dtype == np.float32
    product = traced.equations[2]
    np.testing.assert_array_equal(product.inputs[1].array, np.full((2, 3), 3.0))  # computed beforehand
    assert product.place.startswith("head") and product.inputs[1].name == ""


def test_parameters_that_are_read_as_they_are_keep_their_names():
    weight = np.ones((2, 2), np.float32)
    traced = trace(lambda params, x: x @ params["a"]["w"], {"a": {"w": weight}}, (2,), np.float32)
    (product,) = traced.equations
    assert product.inputs[1].name == "a/w" and product.inputs[1].array is weight


def test_a_constant_function_has_no_equations():
    traced = trace(lambda params, x: params["b"] * 2.0, {"b": np.ones(2, np.float32)}, (2,), np.float32)
    assert traced.equations == []
    np.testing.assert_array_equal(traced.output.array, [2.0, 2.0])
