"""The form for a CPU beyond the contract suite: who takes it, what it keeps in memory."""

import jax
import jax.numpy as jnp

from vit_jax.kernels.dispatch import choose
from vit_jax.kernels.selective_scan import IMPLEMENTATIONS, sequential, xla

SHAPES = [(1, 2048, 32), (1, 2048, 32), (32, 64), (1, 2048, 64), (1, 2048, 64), (32,)]


def test_it_runs_on_a_cpu_and_keeps_less_than_the_associative_form():
    args = [jax.ShapeDtypeStruct(shape, "float32") for shape in SHAPES]
    assert choose("selective scan", IMPLEMENTATIONS, None, *args) is sequential.run

    def temporaries(run):
        loss = lambda *args: jnp.sum(jnp.square(run(*args)))  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1, 2, 3, 4))).lower(*args).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(sequential.run) < temporaries(xla.run) < 4 * 2048 * 32 * 64
