"""The form for every platform beyond the contract suite: what it keeps in memory."""

import jax
import jax.numpy as jnp

from vit_jax.kernels.selective_scan import xla


def test_states_of_one_chunk_are_all_that_is_kept():
    tokens, channels, size = 2048, 32, 64
    shape = jax.ShapeDtypeStruct((1, tokens, channels), "float32")
    small = jax.ShapeDtypeStruct((1, tokens, size), "float32")
    args = shape, shape, jax.ShapeDtypeStruct((channels, size), "float32"), small, small, jnp.ones(channels)
    loss = lambda *args: jnp.sum(jnp.square(xla.run(*args)))  # noqa: E731
    program = jax.jit(jax.grad(loss, (0, 1, 2, 3, 4))).lower(*args).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * tokens * channels * size
