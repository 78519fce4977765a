"""Contrastive losses against loops in float64 written from the papers, open_clip, closed forms; hostile input."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import losses
from vit_jax.losses import contrastive
from vit_jax.types import UserError

FORMS = [losses.Dense(), losses.Chunked(4)]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def make(rng, n=9, e=6, valid=None):
    image, text = (unit(rng.normal(size=(n, e))).astype(np.float32) for _ in range(2))
    mask = np.ones(n, bool) if valid is None else np.isin(np.arange(n), valid)
    return image, text, np.float32(7.3), np.float32(-2.1), mask


def lse(values):
    return np.log(sum(np.exp(v) for v in values))


def clip(x, y, s, b):
    """Radford et al. 2021, figure 3: cross-entropy over rows and over columns, halved."""
    n = range(len(x))
    rows = [lse([s * x[i] @ y[j] for j in n]) - s * x[i] @ y[i] for i in n]
    columns = [lse([s * x[j] @ y[i] for j in n]) - s * x[i] @ y[i] for i in n]
    return [(r + c) / 2 for r, c in zip(rows, columns, strict=True)]


def siglip(x, y, s, b):
    """Zhai et al. 2023, algorithm 1."""
    n = range(len(x))
    sign = lambda i, j: 1 if i == j else -1  # noqa: E731
    return [sum(np.log1p(np.exp(-sign(i, j) * (s * x[i] @ y[j] + b))) for j in n) for i in n]


def cloob(x, y, s, b, beta=8.0):
    """Fuerst et al. 2022, equations 1 to 5, times tau."""
    n = range(len(x))

    def retrieve(query, memory):
        p = np.exp([beta * query @ m for m in memory])
        return unit((p / p.sum()) @ memory)

    ux, uy = ([retrieve(q, x) for q in of] for of in (x, y))
    vx, vy = ([retrieve(q, y) for q in of] for of in (x, y))
    first = [-ux[i] @ uy[i] + lse([s * ux[i] @ uy[j] for j in n if j != i]) / s for i in n]
    second = [-vx[i] @ vy[i] + lse([s * vx[j] @ vy[i] for j in n if j != i]) / s for i in n]
    return [p + q for p, q in zip(first, second, strict=True)]


REFERENCES = {"softmax": clip, "sigmoid": siglip, "cloob": cloob}


@functools.cache
def compiled(name, form):
    """(image, text, scale, bias, mask) -> losses [B], and the gradients of their sum."""

    def both(*args):
        loss = lambda *a: losses.CONTRASTIVE[name]()(*a, args[4], form)  # noqa: E731
        values, back = jax.vjp(loss, *args[:4])
        return values, back(jnp.ones_like(values))

    return jax.jit(both)


@pytest.mark.first(3)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_against_the_papers(name, form, rng):
    x, y, s, b, mask = make(rng)
    value, _ = compiled(name, form)(x, y, s, b, mask)
    want = REFERENCES[name](*(np.asarray(v, np.float64) for v in (x, y, s, b)))
    assert value.dtype == jnp.float32 and value.shape == (9,)
    np.testing.assert_allclose(value, want, rtol=3e-6, atol=1e-6)


def test_cloob_beta(rng):
    x, y, s, b, mask = make(rng)
    want = cloob(*(np.asarray(v, np.float64) for v in (x, y, s, b)), beta=3.0)
    np.testing.assert_allclose(jax.jit(losses.Cloob(beta=3.0))(x, y, s, b, mask), want, rtol=3e-6, atol=1e-6)


@pytest.mark.first(2)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_masked_rows_are_nowhere(name, form, rng):
    """Neither as anchors nor as negatives nor in the Hopfield memory, even if they hold NaN; no gradient to them."""
    keep = [0, 2, 3, 5, 6]
    x, y, s, b, mask = make(rng, valid=keep)
    few, d_few = compiled(name, form)(x[keep], y[keep], s, b, np.ones(5, bool))
    x[[1, 4]] = np.nan
    y[[7, 8]] = np.inf
    values, d = compiled(name, form)(x, y, s, b, mask)
    np.testing.assert_allclose(values[mask], few, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(values[~mask], 0)
    for got, want in zip(d[:2], d_few[:2], strict=True):
        np.testing.assert_allclose(got[mask], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(got[~mask], 0)
    np.testing.assert_allclose(d[2:], d_few[2:], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("valid", [[], [3]], ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_few_valid_rows_give_finite_gradients(name, valid, form, rng):
    """No row: nothing. One row: softmax and InfoLOOB have nothing to tell apart."""
    x, y, s, b, mask = make(rng, valid=valid)
    values, gradient = compiled(name, form)(x, y, s, b, mask)
    if not valid or name != "sigmoid":
        np.testing.assert_allclose(values, 0, atol=1e-6)
        for g in gradient:
            np.testing.assert_allclose(g, 0, atol=1e-6)
    else:
        np.testing.assert_allclose(values.sum(), np.log1p(np.exp(-(s * x[3] @ y[3] + b))), rtol=1e-5)
        assert all(np.isfinite(g).all() for g in gradient)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_uniform_logits_have_closed_forms(form):
    n = 9
    x = np.tile(np.float32([[1, 0, 0, 0, 0, 0]]), (n, 1))
    args = x, x, np.float32(5), np.float32(-3), np.ones(n, bool)
    np.testing.assert_allclose(compiled("softmax", form)(*args)[0], np.log(n), rtol=1e-6)
    sigmoid = np.log1p(np.exp(-2.0)) + (n - 1) * np.log1p(np.exp(2.0))
    np.testing.assert_allclose(compiled("sigmoid", form)(*args)[0], sigmoid, rtol=1e-6)
    np.testing.assert_allclose(compiled("cloob", form)(*args)[0], 2 * np.log(n - 1) / 5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_broken_temperature_shows(name, form, rng):
    x, y, _, b, mask = make(rng, valid=range(7))
    values, gradient = compiled(name, form)(x, y, np.float32("nan"), b, mask)
    assert np.isnan(values[:7]).all() and all(np.isnan(g).any() for g in gradient[:3])


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_large_scale_stays_finite(name, form, rng):
    x, y, _, b, mask = make(rng)
    values, gradient = compiled(name, form)(x, y, np.float32(1e4), b, mask)
    assert np.isfinite(values).all() and all(np.isfinite(g).all() for g in gradient)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_top1(form, rng):
    x, y, _, _, mask = make(rng, n=40, e=3, valid=range(3, 40))
    z = x @ y.T
    z[~mask], z[:, ~mask] = -9, -9
    top1 = jax.jit(contrastive.top1, static_argnums=3)
    to_text, to_image = top1(x, y, mask, form)
    np.testing.assert_array_equal(to_text[3:], z.argmax(1)[3:] == np.arange(3, 40))
    np.testing.assert_array_equal(to_image[3:], z.argmax(0)[3:] == np.arange(3, 40))
    assert 0 < to_text[3:].mean() < 1 and not np.array_equal(to_text[3:], to_image[3:])
    same = np.tile(np.float32([[0, 1, 0]]), (40, 1))
    assert not top1(same, same, mask, form)[0].any()  # collapsed embeddings find nothing


def test_against_open_clip(open_clip, torch, rng):
    x, y, s, b, mask = make(rng, n=9)
    theirs = importlib.import_module(f"{open_clip.__name__}.loss")
    for name, make_loss in {"softmax": theirs.ClipLoss, "sigmoid": theirs.SigLipLoss}.items():
        values, grads = compiled(name, losses.Dense())(x, y, s, b, mask)
        args = [torch.tensor(v, requires_grad=True) for v in (x, y, s, b)]
        value = make_loss()(*args) if name == "sigmoid" else make_loss()(*args[:3])
        value.backward()
        np.testing.assert_allclose(values.mean(), value.item(), rtol=1e-6)
        for got, want in zip(grads, args, strict=True):
            np.testing.assert_allclose(got / 9, 0 if want.grad is None else want.grad.numpy(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("inf")])
def test_beta_out_of_range(beta):
    with pytest.raises(UserError, match=r"beta=.* is not allowed"):
        losses.Cloob(beta)
