"""Random streams are functions of (seed, name, step) and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.train import rng


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_streams_differ_in_each_argument():
    keys = [rng.stream(s, n, t) for s in (0, 1) for n in ("augment", "dropout", "params") for t in (0, 1, 1000)]
    assert len({bits(k) for k in keys}) == len(keys)
    assert bits(rng.stream(1, "dropout", 7)) == bits(rng.stream(1, "dropout", 7))


def test_the_step_may_be_traced():
    traced = jax.jit(lambda step: jax.random.key_data(rng.stream(3, "augment", step)))
    np.testing.assert_array_equal(traced(jnp.int32(5)), jax.random.key_data(rng.stream(3, "augment", 5)))


def test_names_are_hashed_the_same_in_every_process():
    """crc32, not hash(): a run resumed in another process must see the same stream."""
    expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0x3610A686), 2)
    assert bits(rng.stream(0, "hello", 2)) == bits(expected)
