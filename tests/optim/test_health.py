"""The gradient's norm and which of its leaves are finite."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.optim.health import GradStats, track_grad_stats


def tree(rng):
    return {
        "a": jnp.asarray(rng.normal(size=(7, 3)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
        "c": {"d": jnp.float32(-2.5)},
    }


def test_norm_and_updates_pass_unchanged(rng):
    grads, tx = tree(rng), track_grad_stats()
    state = tx.init(grads)
    updates, after = jax.jit(tx.update)(grads, state)
    flat = np.concatenate([np.asarray(g, np.float64).ravel() for g in jax.tree.leaves(grads)])
    np.testing.assert_allclose(after.grad_norm, np.linalg.norm(flat), rtol=1e-6)
    assert after.grad_finite.tolist() == [True, True, True]
    jax.tree.map(np.testing.assert_array_equal, updates, grads)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    assert all(x.dtype == y.dtype and x.shape == y.shape for x, y in zip(state, after, strict=True))


def test_bad_leaves_are_told_apart(rng):
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        grads = tree(rng)
        grads["b"] = grads["b"].at[2].set(bad)
        _, stats = track_grad_stats().update(grads, GradStats(jnp.float32(0), jnp.ones(3, bool)))
        assert stats.grad_finite.tolist() == [True, False, True]
        assert not np.isfinite(stats.grad_norm)


def test_zero_gradients():
    _, stats = track_grad_stats().update({"a": jnp.zeros(3)}, track_grad_stats().init({"a": jnp.zeros(3)}))
    assert stats.grad_norm == 0 and stats.grad_finite.all()
