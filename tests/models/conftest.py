"""Models as single programs: layer by layer, each operation is a program of its own."""

import functools

import jax
import pytest


@functools.cache
def _program(model, options):
    def run(params, rngs, *inputs):
        return model.apply({"params": params}, *inputs, rngs=rngs, **dict(options))

    return jax.jit(run)


@pytest.fixture(scope="session")
def run():
    """``run(model, params, *inputs, rngs=None, **options)``: ``model.apply``, compiled once for a model and options."""
    return lambda model, params, *inputs, rngs=None, **options: _program(model, tuple(options.items()))(
        params, rngs, *inputs
    )
