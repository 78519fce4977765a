"""Accumulation is exact: the gradient of micro-batches is that of the batch, whatever is masked."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.metrics import Mean
from vit_jax.objectives import PerExample, split
from vit_jax.objectives.base import summed


@dataclasses.dataclass(frozen=True)
class Squares(PerExample):
    """(w.x - y)^2, with noise from the dropout stream if asked for."""

    noise: bool = False

    def per_example(self, apply, params, batch, rngs, *, train):
        out = apply(params, batch["image"])
        if self.noise:
            out = out * jax.random.bernoulli(rngs["dropout"], 0.5, out.shape).astype(out.dtype)
        losses = jnp.square(out - batch["label"])
        return losses, {"error": Mean.of(jnp.abs(out - batch["label"]), batch["mask"])}


def make(rng, size=24, masked=(3, 4, 5, 11)):
    mask = np.ones(size, bool)
    mask[list(masked)] = False
    batch = {
        "image": rng.normal(size=(size, 5)).astype(np.float32),
        "label": rng.normal(size=size).astype(np.float32),
        "mask": mask,
    }
    return batch, {"w": rng.normal(size=5).astype(np.float32)}


def apply(params, x):
    return jnp.einsum("bi,i->b", x, params["w"])


@pytest.mark.first(2)
@pytest.mark.parametrize("micro", [1, 2, 3, 8, 24])
def test_accumulated_gradient_is_the_closed_form(rng, micro):
    batch, params = make(rng)
    rngs = {"dropout": jax.random.key(0)}
    (loss, metrics), grads = Squares().value_and_grad(apply, params, batch, rngs, micro)
    x, y, m = (np.asarray(batch[k], np.float64) for k in ("image", "label", "mask"))
    residual = x @ params["w"].astype(np.float64) - y
    np.testing.assert_allclose(loss, (m * residual**2).sum() / m.sum(), rtol=1e-6)
    np.testing.assert_allclose(grads["w"], 2 * (m * residual) @ x / m.sum(), rtol=2e-5)
    np.testing.assert_allclose(metrics["error"].value(), (m * np.abs(residual)).sum() / m.sum(), rtol=1e-6)
    assert metrics["loss"].count == m.sum()


def test_call_agrees_with_value_and_grad(rng):
    batch, params = make(rng)
    rngs = {"dropout": jax.random.key(0)}
    loss, metrics = Squares()(apply, params, batch, rngs, train=True)
    np.testing.assert_allclose(loss, Squares().value_and_grad(apply, params, batch, rngs, 4)[0][0], rtol=1e-6)
    assert set(metrics) == {"loss", "error"}


def test_micro_batches_draw_different_noise_and_repeat_it(rng):
    batch, params = make(rng, masked=())
    batch = {k: np.tile(v[:1], (24,) + (1,) * (v.ndim - 1)) for k, v in batch.items()}  # 24 times the same example
    rngs = {"dropout": jax.random.key(0)}
    first = Squares(noise=True).value_and_grad(apply, params, batch, rngs, 24)
    again = Squares(noise=True).value_and_grad(apply, params, batch, rngs, 24)
    chex.assert_trees_all_equal(first, again)
    kept = np.square(apply(params, batch["image"])[0] - batch["label"][0])
    dropped = np.square(batch["label"][0])
    share = (float(first[0][0]) - dropped) / (kept - dropped)
    assert 0.1 < share < 0.9  # all 24 slices with one mask would give 0 or 1


def test_split_strides(rng):
    parts = split({"x": jnp.arange(12)}, 3)["x"]
    np.testing.assert_array_equal(parts, [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])


def test_sums_over_the_leading_axis():
    x, y = jnp.arange(6.0).reshape(3, 2), jnp.arange(3)
    found = summed(lambda x, y: {"x": x, "n": y + 1}, (x, y))
    assert found["x"].tolist() == [6, 9] and found["n"] == 6
