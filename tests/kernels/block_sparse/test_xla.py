"""The plain products beyond the contract suite: which form runs, and the rule of their types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.kernels.block_sparse import block_sparse, patterns, xla


def program(index, inputs, known, dtype="bfloat16"):
    per, out = index.shape[1], 8 * len(index)
    x, kernel, bias = jnp.ones((5, inputs), dtype), jnp.ones((per, 8, out)), jnp.ones(out)

    def loss(x, kernel, bias):
        y = block_sparse(x, kernel, index if known else jnp.asarray(index), bias, implementation="xla")
        return jnp.sum(y.astype(jnp.float32))

    return str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(x, kernel, bias))


def test_three_products_for_each_part_all_summed_in_float32():
    text = program(patterns.butterfly(4, 8, 2), 32, known=True)
    assert text.count("dot_general[") == text.count("preferred_element_type=float32") == 3 * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pattern_that_is_data_runs_batched(dtype):
    text = program(patterns.butterfly(4, 8, 2), 32, known=False, dtype=dtype)
    assert text.count("dot_general[") == text.count("preferred_element_type=float32") == 3


def test_many_parts_run_batched(monkeypatch):
    monkeypatch.setattr(xla, "UNROLLED", 1)
    assert program(patterns.butterfly(4, 8, 2), 32, known=True).count("dot_general[") == 3


def test_inputs_that_nobody_reads_have_no_gradient():
    index = np.array([[0], [0]])
    loss = lambda x: jnp.sum(block_sparse(x, jnp.ones((1, 8, 16)), index, implementation="xla"))  # noqa: E731
    dx = jax.jit(jax.grad(loss))(jnp.ones((2, 24)))
    assert np.all(np.asarray(dx)[:, :8] == 16) and not np.any(np.asarray(dx)[:, 8:])
