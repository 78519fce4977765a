"""One product after the other, as a layer of its own would do it; their numbers are in the contract suite."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.kernels.monarch import monarch
from vit_jax.kernels.monarch_mlp import apart
from vit_jax.kernels.monarch_mlp.factors import Factors


def test_it_is_two_products_with_an_activation_between(rng):
    draw = lambda *s: jnp.asarray(rng.standard_normal(s), jnp.float32)  # noqa: E731
    first = Factors(draw(2, 4, 3), draw(2, 8, 4), draw(16))
    second = Factors(draw(2, 4, 8), draw(2, 3, 4), draw(6))
    x = draw(5, 6)
    got = jax.jit(lambda *args: apart.run(*args, jax.nn.relu))(x, first, second)
    want = jax.jit(lambda x, a, b: monarch(jax.nn.relu(monarch(x, *a)), *b))(x, first, second)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
