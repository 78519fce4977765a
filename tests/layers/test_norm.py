"""Layer norm against Flax."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers.norm import LayerNorm, RMSNorm, unit


def test_module_equals_flax_in_value_and_gradient(rng):
    x = jnp.asarray(rng.standard_normal((2, 3, 8)), jnp.float32)
    params = {"scale": jnp.linspace(0.5, 2, 8), "bias": jnp.linspace(-1, 1, 8)}
    both = []
    for module in (LayerNorm(), nn.LayerNorm(epsilon=1e-6)):

        def loss(p, x, module=module):
            return jnp.sum(jnp.sin(module.apply({"params": p}, x)))

        both.append(jax.jit(jax.grad(loss, (0, 1)))(params, x))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *both)


def test_bfloat16_is_the_rounded_float32_result_and_params_stay_float32(rng):
    x = jnp.asarray(rng.standard_normal((4, 9)), jnp.bfloat16)
    boxed = jax.jit(LayerNorm("bfloat16").init)(jax.random.key(0), x)
    assert boxed["params"]["scale"].names == ("embed",)
    got = jax.jit(LayerNorm("bfloat16").apply)(boxed, x)
    wide = jax.jit(LayerNorm().apply)(boxed, x.astype(jnp.float32))
    assert got.dtype == jnp.bfloat16 and nn.meta.unbox(boxed)["params"]["scale"].dtype == jnp.float32
    np.testing.assert_array_equal(got, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rms_norm_equals_float64_and_goes_on_beside(rng, dtype):
    x, scale = jnp.asarray(rng.standard_normal((2, 3, 7)) + 3, dtype), jnp.asarray(rng.standard_normal(7), jnp.float32)
    seen = []
    got = RMSNorm(dtype, 1e-3).apply({"params": {"scale": scale}}, x, beside=seen.append)
    wide = np.asarray(x, np.float64)
    want = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-3) * np.asarray(scale, np.float64)
    assert got.dtype == dtype and seen[0] is x
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=1e-6 if dtype == "float32" else 2**-8, atol=1e-6)


def test_unit_of_zero_is_zero_with_a_finite_gradient():
    x = jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(unit(x), [[0, 0], [0.6, 0.8]], atol=1e-7)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(unit(x)))))(x)
    assert np.isfinite(grad).all()
