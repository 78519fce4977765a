"""The two operations on all pairs, against NumPy."""

import jax
import numpy as np
import pytest

from vit_jax.losses import blockwise, pairs

RULES = {
    "logsumexp": (pairs.LOGSUMEXP, lambda z: np.log(np.exp(z).sum())),
    "softplus": (pairs.SOFTPLUS, lambda z: np.log1p(np.exp(z)).sum()),
    "max": (pairs.MAX, lambda z: z.max()),
}


@pytest.mark.first(6)
@pytest.mark.parametrize("form", [pairs.Dense(), blockwise.Chunked(3), blockwise.Chunked(100)], ids=str)
@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_reduce(rule, diagonal, form, rng):
    a, c = rng.normal(size=(2, 7, 4)).astype(np.float32)
    mask = np.array([1, 1, 0, 1, 1, 1, 0], bool)
    s, b = np.float32(1.7), np.float32(0.3)
    what = pairs.Reduction(RULES[rule][0], diagonal, columns=True)

    @jax.jit
    def run(a, c, s, b, mask):
        rows, columns = form.reduce(what, a, c, s, b, mask)
        (alone,) = form.reduce(what._replace(columns=False), a, c, s, b, mask)
        return rows, columns, alone, form.reduce(what, a, c, s, None, mask)[0]

    rows, columns, alone, unbiased = run(a, c, s, b, mask)
    z = s * a.astype(np.float64) @ c.T + b
    counts = mask[:, None] & mask[None] & (diagonal | ~np.eye(7, dtype=bool))
    of = RULES[rule][1]
    np.testing.assert_allclose(rows[mask], [of(z[i][counts[i]]) for i in np.flatnonzero(mask)], rtol=2e-6)
    np.testing.assert_allclose(columns[mask], [of(z[:, i][counts[:, i]]) for i in np.flatnonzero(mask)], rtol=2e-6)
    np.testing.assert_allclose(alone, rows, rtol=1e-6)
    np.testing.assert_allclose(unbiased, run(a, c, s, np.float32(0), mask)[0], rtol=1e-6)


@pytest.mark.parametrize("rule", [pairs.LOGSUMEXP, pairs.SOFTPLUS])
def test_rules_agree_with_themselves(rule, rng):
    """Merging parts gives the whole; nothing merged in changes nothing; ``derivative`` is that of the whole."""
    z = rng.normal(0, 3, size=(2, 5)).astype(np.float32)
    reduce, merge = jax.jit(rule.reduce, static_argnums=1), jax.jit(rule.merge)
    whole = reduce(z.reshape(-1), 0)
    np.testing.assert_allclose(merge(*reduce(z, 1)), whole, rtol=1e-6)
    np.testing.assert_array_equal(merge(whole, np.float32(rule.empty)), whole)
    up, down = z.reshape(-1).copy(), z.reshape(-1).copy()
    up[3] += 0.05
    down[3] -= 0.05
    difference = (reduce(up, 0) - reduce(down, 0)) / 0.1
    np.testing.assert_allclose(rule.derivative(z.reshape(-1)[3], whole), difference, rtol=1e-2)


@pytest.mark.parametrize("form", [pairs.Dense(), blockwise.Chunked(3)], ids=str)
def test_retrieve(form, rng):
    query, memory = rng.normal(size=(2, 7, 4)).astype(np.float32)
    mask = np.array([1, 0, 1, 1, 1, 1, 0], bool)
    p = np.exp(2.5 * query.astype(np.float64) @ memory[mask].T)
    want = p / p.sum(1, keepdims=True) @ memory[mask]
    got = jax.jit(lambda *a: form.hopfield_retrieve(2.5, *a))(query, memory, mask)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_retrieve_gradient(rng):
    """For any cotangent: CLOOB's, behind a normalisation, is always orthogonal to what was retrieved."""
    query, memory, cotangent = rng.normal(size=(3, 7, 4))
    mask = np.array([1, 0, 1, 1, 1, 1, 0], bool)

    def gradient(form):
        return jax.jit(lambda q, m, g: jax.vjp(lambda *a: form.hopfield_retrieve(2.5, *a, mask), q, m)[1](g))

    with jax.enable_x64(True):
        want = gradient(pairs.Dense())(query, memory, cotangent)
        for got, expected in zip(gradient(blockwise.Chunked(3))(query, memory, cotangent), want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
