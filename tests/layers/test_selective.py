"""Mixers by selective scans against loops in float64, their symmetry, and how they begin."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.layers.test_conv import reference as depthwise
from vit_jax.layers.selective import CrossMixer, SelectiveMixer


def random_params(model, *inputs):
    """Normal numbers; what the step sizes are made of small, so that states last."""
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"])
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape) * 0.3, jnp.float32), shapes)


def silu(x):
    return x / (1 + np.exp(-x))


def direction(x, p, short=True):
    """Algorithm 1 of the paper for one direction of one image, ``[N, E]``; ``short`` for its convolution."""
    if short:
        moved = [np.concatenate([np.zeros((3 - i, x.shape[1])), x])[: len(x)] for i in range(4)]
        x = silu(sum(m * w for m, w in zip(moved, p["kernel_conv"], strict=True)) + p["bias_conv"])
    rank, state = len(p["dt_proj"]["kernel"]), p["A_log"].shape[1]
    r, b, c = np.split(x @ p["x_proj"]["kernel"], (rank, rank + state), axis=1)
    delta = np.log1p(np.exp(r @ p["dt_proj"]["kernel"] + p["bias_dt"]))
    h, rows = np.zeros(p["A_log"].shape), []
    for t in range(len(x)):
        h = np.exp(-delta[t, :, None] * np.exp(p["A_log"])) * h + (delta[t] * x[t])[:, None] * b[t]
        rows.append(h @ c[t] + p["D"] * x[t])
    return np.stack(rows)


def mixed(x, p):
    value, gate = np.split(x @ p["in"]["kernel"], 2, axis=1)
    y = direction(value, p["forward"]) + direction(value[::-1], p["backward"])[::-1]
    return y / 2 * silu(gate) @ p["out"]["kernel"]


def crossed(x, p, grid):
    """The mixer of a grid's tokens, ``[N, D]``; ``places`` is in which order they come to each scan."""
    value, gate = np.split(x @ p["in"]["kernel"], 2, axis=1)
    tokens = value.reshape(1, *grid, -1)
    value = silu(depthwise(tokens, p["conv"]["kernel"]) + p["conv"]["bias"]).reshape(value.shape)
    places, total = np.arange(len(x)).reshape(grid), np.zeros_like(value)
    orders = {"forward": places.ravel(), "down": places.T.ravel()}
    orders |= {"backward": orders["forward"][::-1], "up": orders["down"][::-1]}
    for name, order in orders.items():
        total[order] += direction(value[order], p[name], short=False) / 4
    return total * silu(gate) @ p["out"]["kernel"]


@pytest.mark.parametrize(
    ("mixer", "reference"),
    [
        (SelectiveMixer(state=3), mixed),
        (CrossMixer(state=3, grid=(2, 5)), functools.partial(crossed, grid=(2, 5))),
        (CrossMixer(state=1, expand=3, grid=(10, 1)), functools.partial(crossed, grid=(10, 1))),
    ],
)
def test_equals_loops_in_float64(rng, mixer, reference):
    x = rng.standard_normal((2, 10, 6))
    params = random_params(mixer, x)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    want = np.stack([reference(one, wide) for one in x])
    got = jax.jit(mixer.apply)({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, want, atol=1e-5 * abs(want).max())


def test_in_reverse_with_both_directions_exchanged_it_is_reversed(rng):
    mixer, x = SelectiveMixer(state=3), jnp.asarray(rng.standard_normal((2, 7, 5)), jnp.float32)
    params = random_params(mixer, x)
    other = {**params, "forward": params["backward"], "backward": params["forward"]}
    apply = jax.jit(mixer.apply)
    got, want = apply({"params": other}, x[:, ::-1]), apply({"params": params}, x)[:, ::-1]
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    assert np.abs(apply({"params": params}, x[:, ::-1]) - want).max() > 1e-2 * np.abs(want).max()


def test_beginnings():
    """Rates of 1 to n, steps between a thousandth and a tenth, and output maps that shrink with the depth."""
    mixer = SelectiveMixer(depth=16)
    made = nn.unbox(jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 1, 64)))["params"])
    one, other = (jax.tree.map(np.asarray, made[name]) for name in ("forward", "backward"))
    np.testing.assert_allclose(np.exp(one["A_log"]), np.tile(np.arange(1, 17), (128, 1)), rtol=1e-6)
    steps = np.log1p(np.exp(one["bias_dt"]))
    assert 9e-4 < steps.min() < 4e-3 and 0.03 < steps.max() < 0.11
    assert (one["D"] == 1).all() and not np.array_equal(one["bias_dt"], other["bias_dt"])
    bounds = {"kernel_conv": 4, "bias_conv": 4, "dt_proj": 4, "x_proj": 128}
    found = {key: np.abs(jax.tree.leaves(one[key])[0]).max() * inputs**0.5 for key, inputs in bounds.items()}
    found["out"] = np.abs(made["out"]["kernel"]).max() * 128**0.5 * 16**0.5
    assert all(0.9 < value <= 1.0001 for value in found.values()), found
