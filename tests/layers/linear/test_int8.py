"""Maps in int8: what is stored, and a block of a model that computes with them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers.linear import Dense
from vit_jax.layers.linear.int8 import Int8
from vit_jax.layers.mlp import MLP
from vit_jax.types import UsageError


def test_a_dense_map_is_stored_in_a_quarter(rng):
    kernel, bias = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((64, 5), (5,)))
    kernel = kernel.at[:, 2].set(0)
    params = Int8().from_dense(kernel, bias)
    assert {k: (v.shape, v.dtype.name) for k, v in params.items()} == {
        "kernel_values": ((64, 5), "int8"),
        "kernel_scale": ((5,), "float32"),
        "bias": ((5,), "float32"),
    }
    dense, same = Int8("dynamic").to_dense(params)
    assert np.all(np.abs(dense - kernel) <= 0.5001 / 127 * np.abs(kernel).max(0)) and same is params["bias"]
    again, none = Int8().to_dense(Int8().from_dense(dense, None))
    np.testing.assert_allclose(again, dense, rtol=1e-6)
    assert none is None


def test_layers_start_as_dense_ones_rounded_and_are_split_as_those():
    x = jnp.ones((2, 16))
    layer = Int8()(8, name="map", axes=("mlp", "embed"), dtype="bfloat16", use_bias=False)
    boxed = jax.jit(layer.init)(jax.random.key(3), x)["params"]
    assert {k: v.names for k, v in boxed.items()} == {"kernel_values": ("mlp", "embed"), "kernel_scale": ("embed",)}
    dense = Dense()(8, use_bias=False).init(jax.random.key(3), x)["params"]
    want, _ = Int8().to_dense(Int8().from_dense(nn.meta.unbox(dense)["kernel"], None))
    np.testing.assert_array_equal(Int8().to_dense(nn.meta.unbox(boxed))[0], want)


@pytest.mark.parametrize(("activations", "most"), [("float", 0.01), ("dynamic", 0.02)])
def test_a_perceptron_is_near_the_dense_one(rng, activations, most):
    x = jnp.asarray(rng.standard_normal((2, 5, 32)), jnp.float32)
    dense, small = MLP(64), MLP(64, linear=Int8(activations))
    params = nn.meta.unbox(jax.jit(dense.init)(jax.random.key(0), x)["params"])
    want = jax.jit(dense.apply)({"params": params}, x)
    stored = {k: Int8().from_dense(v["kernel"], v["bias"]) for k, v in params.items()}
    got = jax.jit(small.apply)({"params": stored}, x)
    assert 0 < np.linalg.norm(got - want) < most * np.linalg.norm(want)


def test_unknown_activations_are_refused():
    with pytest.raises(UsageError, match="did you mean 'dynamic'"):
        Int8("dynamik")
