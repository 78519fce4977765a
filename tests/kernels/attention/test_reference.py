"""The definition against another one, and its gradient against differences."""

import jax
import numpy as np
import pytest

from vit_jax.kernels.attention import reference


@pytest.mark.parametrize("causal", [False, True])
def test_against_jax(rng, causal):
    qkv = rng.standard_normal((2, 7, 3, 3, 8)).astype("float32")
    q, k, v = np.moveaxis(qkv, 3, 0)
    want = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
    got = reference.attention(qkv.reshape(2, 7, -1), 3, causal=causal)
    np.testing.assert_allclose(got, np.reshape(want, (2, 7, -1)), atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_the_gradient_is_that_of_differences(rng, causal):
    qkv, along = rng.standard_normal((2, 1, 5, 2 * 3 * 4))
    g = rng.standard_normal((1, 5, 2 * 4))
    step = 1e-6
    ends = [reference.attention(qkv + s * along, 2, causal=causal) for s in (step, -step)]
    slope = np.sum(g * (ends[0] - ends[1])) / (2 * step)
    np.testing.assert_allclose(np.sum(along * reference.gradient(qkv, g, 2, causal=causal)), slope, rtol=1e-8)
