"""Cross-entropies against float64 NumPy, scikit-learn and closed-form gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from vit_jax.losses import classification
from vit_jax.types import UserError

LOSSES = sorted(classification.CROSS_ENTROPIES)


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.eye(num_classes)[labels]


def soften(targets: np.ndarray, smoothing: float) -> np.ndarray:
    return targets * (1 - smoothing) + smoothing / targets.shape[-1]


def softmax64(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(output_activation: str, z: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loss [B] and d sum(loss) / dz [B,C] in float64, from the probabilities."""
    z = z.astype(np.float64)
    if output_activation == "softmax":
        p = softmax64(z)
        return -(t * np.log(p)).sum(-1), p * t.sum(-1, keepdims=True) - t
    p = 1 / (1 + np.exp(-z))
    return -(t * np.log(p) + (1 - t) * np.log1p(-p)).sum(-1), p - t


@pytest.fixture(params=[(7, 5), *(pytest.param(s, marks=pytest.mark.slow) for s in ((1, 2), (13, 1000)))], ids=str)
def problem(request: pytest.FixtureRequest, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits [B,C], labels [B] and soft targets [B,C]."""
    b, c = request.param
    logits = rng.normal(0, 4, (b, c)).astype(np.float32)
    return logits, rng.integers(0, c, b).astype(np.int32), rng.dirichlet(np.ones(c), b).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradient(output_activation, smoothing, logits, labels):
    """The losses [B], and the gradient of their sum."""
    value, back = jax.vjp(
        lambda z: classification.CROSS_ENTROPIES[output_activation](z, labels, label_smoothing=smoothing), logits
    )
    return value, back(jnp.ones_like(value))[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("output_activation", LOSSES)
def test_value_and_gradient(output_activation: str, soft: bool, smoothing: float, problem: tuple) -> None:
    logits, labels, targets = problem
    given = targets if soft else labels
    value, gradient = value_and_gradient(output_activation, smoothing, logits, given)
    t = soften(targets.astype(np.float64) if soft else one_hot(labels, logits.shape[1]), smoothing)
    want, want_gradient = reference(output_activation, logits, t)
    assert value.dtype == jnp.float32 and value.shape == labels.shape
    np.testing.assert_allclose(value, want, rtol=3e-6, atol=3e-6)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-5, atol=2e-6)


def test_softmax_against_sklearn(rng: np.random.Generator) -> None:
    logits, labels = rng.normal(size=(31, 6)), rng.integers(0, 6, 31)
    value = classification.softmax_cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32))
    want = sklearn.metrics.log_loss(labels, softmax64(logits), labels=range(6))
    np.testing.assert_allclose(np.mean(value), want, rtol=1e-6)


@pytest.mark.parametrize("output_activation", LOSSES)
def test_bfloat16_logits_are_computed_in_float32(output_activation: str, rng: np.random.Generator) -> None:
    loss = jax.jit(classification.CROSS_ENTROPIES[output_activation], static_argnames="label_smoothing")
    logits = jnp.asarray(rng.normal(size=(5, 9)), jnp.bfloat16)
    labels = jnp.asarray(rng.integers(0, 9, 5), jnp.int32)
    value = loss(logits, labels, label_smoothing=0.1)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, loss(logits.astype(jnp.float32), labels, label_smoothing=0.1))
    assert value_and_gradient(output_activation, 0.0, logits, labels)[1].dtype == jnp.bfloat16
    soft = jax.nn.one_hot(labels, 9, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(loss(logits, soft), loss(logits, labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("output_activation", LOSSES)
def test_extreme_logits_stay_finite(output_activation: str, smoothing: float) -> None:
    big = np.float32(1e37)
    logits = jnp.asarray([[big, -big, 0], [-big, big, big], [200, -200, 0], [0, 0, 0]], jnp.float32)
    labels = jnp.asarray([1, 1, 0, 2], jnp.int32)
    value, gradient = value_and_gradient(output_activation, smoothing, logits, labels)
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    if not smoothing:
        expected = {
            "softmax": [2 * big, np.log(2), 0, np.log(3)],
            "sigmoid": [2 * big + np.log(2), big, np.log(2), 3 * np.log(2)],
        }
        np.testing.assert_allclose(value, expected[output_activation], rtol=1e-6)


def test_a_confident_loss_keeps_its_digits() -> None:
    logits, labels = jnp.asarray([[-30.0, 30.0]], jnp.float32), jnp.asarray([1], jnp.int32)
    value = classification.sigmoid_cross_entropy(logits, labels)
    np.testing.assert_allclose(value, [2 * np.exp(-30.0)], rtol=1e-5)


def test_smoothed_targets_sum_to_one() -> None:
    targets = classification.smooth_targets(jnp.asarray([2, 0], jnp.int32), 4, 0.2)
    np.testing.assert_allclose(targets, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_out_of_range(smoothing: float) -> None:
    with pytest.raises(UserError, match=r"label_smoothing=.* give a number in \[0, 1\)"):
        classification.softmax_cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), label_smoothing=smoothing)
