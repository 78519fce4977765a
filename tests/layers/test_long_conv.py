"""The long convolution against loops and NumPy's FFT in float64; the filter's parameters and decay."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.layers.long_conv import IMPLEMENTATIONS, Filter, _factors, long_conv
from vit_jax.types import UserError


def by_loops(x, forward, backward):
    y = np.zeros(x.shape)
    for n in range(x.shape[1]):
        for m in range(x.shape[1]):
            y[:, n] += (forward[n - m] if m <= n else backward[m - n - 1]) * x[:, m]
    return y


def by_numpy_fft(x, forward, backward):
    n = x.shape[1]
    circle = np.concatenate([forward, np.zeros((1, x.shape[2])), backward[: n - 1][::-1]])
    return np.fft.ifft(np.fft.fft(x, 2 * n, axis=1) * np.fft.fft(circle, axis=0), axis=1).real[:, :n]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("n", [1, 2, 7, 16, 37, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 196))])
def test_value_equals_loops_and_fft(rng, name, n):
    x, forward, backward = rng.normal(size=(2, n, 3)), rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
    want = by_numpy_fft(x, forward, backward)
    if n < 40:
        np.testing.assert_allclose(by_loops(x, forward, backward), want, atol=1e-10)
    run = jax.jit(functools.partial(long_conv, implementation=name))
    got = run(*(jnp.asarray(a, jnp.float32) for a in (x, forward, backward)))
    np.testing.assert_allclose(got, want, atol=1e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_gradients_equal_the_closed_form(rng, name):
    """The convolution is linear in both: its transposes are sums over the same pairs of positions."""
    n, d = 11, 2
    x, forward, backward, g = (rng.normal(size=s) for s in ((3, n, d), (n, d), (n, d), (3, n, d)))
    want = [np.zeros_like(a) for a in (x, forward, backward)]
    for i in range(n):
        for m in range(n):
            lag = i - m if m <= i else m - i - 1
            want[0][:, m] += g[:, i] * (forward if m <= i else backward)[lag]
            want[1 if m <= i else 2][lag] += (g[:, i] * x[:, m]).sum(0)
    wide = [jnp.asarray(a, jnp.float32) for a in (x, forward, backward)]
    run = functools.partial(long_conv, implementation=name)
    gradients = jax.jit(lambda g, *args: jax.vjp(run, *args)[1](g))(jnp.asarray(g, jnp.float32), *wide)
    for got, expected in zip(gradients, want, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_low_precision_is_rounded_once(rng):
    x = jnp.asarray(rng.normal(size=(2, 9, 4)), jnp.bfloat16)
    forward, backward = jnp.asarray(rng.normal(size=(2, 9, 4)), jnp.float32)
    run = jax.jit(long_conv)
    y = run(x, forward, backward)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, run(x.astype(jnp.float32), forward, backward).astype(jnp.bfloat16))


@pytest.mark.parametrize("n", [196, 1024, 16384])
def test_products_grow_as_the_power_one_and_a_half(n):
    rows, columns, _ = _factors(n)
    assert rows.shape[1] * columns.shape[1] >= 2 * n
    assert rows.shape[1] + columns.shape[1] <= 3 * n**0.5 + 4


def test_an_unknown_implementation_is_a_sentence():
    with pytest.raises(UserError, match="unknown implementation of long_conv 'ftt'; did you mean 'fft'"):
        long_conv(jnp.zeros((1, 2, 1)), jnp.zeros((2, 1)), jnp.zeros((2, 1)), implementation="ftt")


def test_a_filter_fits_any_number_of_tokens_and_fades():
    module = Filter(6, features=5, hidden=8)
    p = nn.meta.unbox(jax.jit(module.init, static_argnums=1)(jax.random.key(0), 4)["params"])
    assert sorted(p) == ["frequency", "hidden_0", "hidden_1", "out"]
    assert p["hidden_0"]["kernel"].shape == (5, 8) and set(p["out"]) == {"kernel"}
    long = jax.jit(module.apply, static_argnums=1)({"params": p}, 64)
    assert long.shape == (64, 6) and long.dtype == jnp.float32
    # the slowest channel falls to 0.01^(1/1.5) of the MLP's output at the end, the fastest to 0.01^(1/0.3)
    bound = float(jnp.sum(jnp.abs(p["out"]["kernel"]), axis=0)[-1])
    assert float(jnp.abs(long[-1, -1])) <= bound * 0.01 ** (1 / 0.3) * 1.001
    time, band = np.arange(64) / 63, np.linspace(1e-4, 1, 2)
    angle = np.outer(2 * np.pi * np.arange(64) / 64, band)
    h = np.concatenate([time[:, None], np.cos(angle), -np.sin(angle)], axis=1)
    for i in range(2):
        h = np.sin(h @ np.asarray(p[f"hidden_{i}"]["kernel"]) + np.asarray(p[f"hidden_{i}"]["bias"]))
    rate = np.linspace(-np.log(0.01) / 1.5, -np.log(0.01) / 0.3, 6)
    np.testing.assert_allclose(long, (h @ np.asarray(p["out"]["kernel"])) * np.exp(-np.outer(time, rate)), atol=1e-5)
