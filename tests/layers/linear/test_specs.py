"""Every linear map by name, in every model that takes one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config
from vit_jax.layers.linear.specs import LINEARS, Spec, name_of

TEXTS = {
    "dense": "dense",
    "monarch": "monarch(4)",
    "block_diagonal": "block_diagonal(4)",
    "low_rank": "low_rank(rank=20)",
    "sparse24": "sparse24",
    "packed24": "packed24",
    "block_sparse": "block_sparse(density=0.5, block=16)",
    "int8": "int8",
}
"""Name -> what a user may write."""


def test_every_row_is_tested():
    assert set(TEXTS) == set(LINEARS)


@pytest.mark.first(4)
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_layer_equals_the_product_with_its_dense_kernel(rng, name, dtype):
    spec = config.parse(Spec, TEXTS[name])
    assert spec == config.parse(Spec, TEXTS[name]) and hash(spec) == hash(config.parse(Spec, TEXTS[name]))
    x = jnp.asarray(rng.normal(size=(3, 5, 64)), dtype)
    layer = spec(96, name="map", dtype=dtype, bias_init=nn.initializers.normal(1.0))
    p = nn.meta.unbox(jax.jit(layer.init)(jax.random.key(0), x)["params"])
    assert {k.partition("_")[0] for k in p} <= {"kernel", "bias"}
    kernel, bias = spec.to_dense(p)
    assert kernel.shape == (64, 96) and kernel.dtype == bias.dtype == jnp.float32
    want = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
    got = jax.jit(layer.apply)({"params": p}, x)
    assert got.dtype == dtype
    error = np.abs(np.asarray(got, np.float64) - want).max()
    assert error <= (1e-5 if dtype == "float32" else 2e-2) * np.abs(want).max()
    again = spec.from_dense(kernel, bias)
    np.testing.assert_allclose(spec.to_dense(again)[0], kernel, atol=1e-5)
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, dict(p))


@pytest.mark.parametrize(
    "text",
    [
        "dense",
        "monarch(4)",
        "monarch(2, implementation=xla)",
        "sparse24(mask=frozen, bits=8)",
        "packed24(int8)",
        "int8(dynamic)",
        "block_sparse(pattern=random, seed=3)",
    ],
)
def test_the_name_of_a_spec_is_what_makes_it(text):
    assert name_of(config.parse(Spec, text)) == text
