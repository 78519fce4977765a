"""The loop of products follows the product rule."""

import jax
import jax.numpy as jnp

from vit_jax.kernels.block_diagonal import xla


def test_products_follow_the_rule():
    x, kernel, bias = jnp.ones((2, 3, 8), jnp.bfloat16), jnp.ones((2, 4, 3)), jnp.ones(6)
    loss = lambda *args: jnp.sum(xla.run(*args).astype(jnp.float32))  # noqa: E731
    jaxpr = str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(x, kernel, bias))
    assert jaxpr.count("preferred_element_type=float32") == jaxpr.count("dot_general") == 6


def test_as_many_blocks_as_it_is_unrolled_for():
    x, kernel = jnp.ones((1, xla.UNROLLED)), jnp.ones((xla.UNROLLED, 1, 1))
    assert xla.slower_reason(x, kernel, None) is None
