"""The gradients that all implementations share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.kernels.products import matmul
from vit_jax.kernels.topk_mlp import dense


def test_gradients_are_those_of_the_dense_product_whatever_ran(rng):
    h, kernel, bias, g = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((3, 5), (5, 4), (4,), (3, 4)))
    none = functools.partial(dense.with_its_gradients(lambda k, h, w, b: jnp.zeros((3, 4))), 2)

    @jax.jit
    def run(*args):
        y, pull = jax.vjp(none, *args)
        return y, pull(g), jax.vjp(matmul, *args)[1](g)

    y, mine, theirs = run(h, kernel, bias)
    assert not y.any()
    for got, want in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(got, want)


def test_it_is_the_product_of_every_layer(rng):
    h, kernel = (jnp.asarray(rng.standard_normal(s), jnp.bfloat16) for s in ((3, 5), (5, 4)))
    np.testing.assert_array_equal(dense.run(h, kernel, None, k=2), matmul(h, kernel))
