from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.optim.optimizers import OPTIMIZERS, Adafactor, AdamW, Lion, Sgd
from vit_jax.types import UserError

SHAPES = {"kernel": (4, 3), "bias": (3,)}
STEPS = 6


@pytest.fixture
def gradients(rng):
    return [{k: rng.normal(size=s) for k, s in SHAPES.items()} for _ in range(STEPS)]


def run(tx, gradients):
    """Each step's direction, and the last state."""
    params = {k: jnp.ones(s) for k, s in SHAPES.items()}
    state, out = tx.init(params), []
    step = jax.jit(tx.update)
    for g in gradients:
        u, state = step(jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), g), state, params)
        out.append(u)
    return out, state


def adam(gradients, b1, b2, eps):
    m, v, out = 0.0, 0.0, []
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        out.append(m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps))
    return out


def lion(gradients, b1, b2):
    m, out = 0.0, []
    for g in gradients:
        out.append(np.sign(b1 * m + (1 - b1) * g))
        m = b2 * m + (1 - b2) * g
    return out


def momentum(gradients, mu, nesterov):
    u, out = 0.0, []
    for g in gradients:
        u = mu * u + g
        out.append(g + mu * u if nesterov else u)
    return out


REFERENCE = [
    (AdamW(0.8, 0.95, 1e-3), lambda g: adam(g, 0.8, 0.95, 1e-3)),
    (Lion(0.7, 0.9), lambda g: lion(g, 0.7, 0.9)),
    (Sgd(0.8), lambda g: momentum(g, 0.8, False)),
    (Sgd(0.8, nesterov=True), lambda g: momentum(g, 0.8, True)),
    (Sgd(0.0), lambda g: g),
]


@pytest.mark.parametrize(("optimizer", "reference"), REFERENCE, ids=lambda x: type(x).__name__)
def test_equals_float64_numpy(optimizer, reference, gradients):
    got, _ = run(optimizer.scale(), gradients)
    for k in SHAPES:
        for a, b in zip(got, reference([g[k] for g in gradients]), strict=True):
            assert a[k].dtype == jnp.float32
            np.testing.assert_allclose(a[k], b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.5, 1.0])
@pytest.mark.parametrize("min_dim", [2, 128])
def test_adafactor_without_momentum_equals_optax(min_dim, threshold, gradients):
    ours = Adafactor(b1=0, b2_max=0.9999, exponent=0.7, threshold=threshold, min_dim=min_dim, mu_dtype="float32")
    theirs = optax.adafactor(
        min_dim_size_to_factor=min_dim,
        decay_rate=0.7,
        multiply_by_parameter_scale=False,
        clipping_threshold=threshold,
    )
    a, state = run(ours.scale(), gradients)
    b, _ = run(theirs, gradients)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, -y, rtol=1e-5), a, b)
    factors = sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.shape not in [(), (1,)])
    assert factors == ([(3,), (3,), (4,)] if min_dim == 2 else [(3,), (4, 3)])


def test_adafactor_momentum_starts_at_zero_and_its_decay_is_capped(gradients):
    plain, _ = run(Adafactor(b1=0).scale(), gradients)
    averaged, _ = run(Adafactor(b1=0.6, mu_dtype="float32").scale(), gradients)
    m = 0.0
    for p, a in zip(plain, averaged, strict=True):
        m = 0.6 * m + 0.4 * np.asarray(p["kernel"], np.float64)
        np.testing.assert_allclose(a["kernel"], m, rtol=1e-5)
    ones, tenth = ([{"kernel": np.full((4, 3), c)} for c in cs] for cs in ([1.0] * 6, [1.0] * 5 + [0.1]))
    capped = Adafactor(b1=0, b2_max=0.5, threshold=100, min_dim=99).scale()
    np.testing.assert_allclose(run(capped, [{**g, "bias": np.ones(3)} for g in ones])[0][-1]["kernel"], 1, rtol=1e-6)
    last = run(capped, [{**g, "bias": np.ones(3)} for g in tenth])[0][-1]["kernel"]
    np.testing.assert_allclose(last, 0.1 / np.sqrt(0.5 * 1 + 0.5 * 0.01), rtol=1e-6)


def test_adafactor_is_big_visions(gradients):
    """``scale_by_adafactor`` of google-research/big_vision at its defaults, but for where momentum is stored."""

    def decay(step, exponent):
        return jnp.minimum(0.999, 1 - (step + 1).astype(jnp.float32) ** -exponent)

    theirs = optax.chain(
        optax.scale_by_factored_rms(
            factored=True, decay_rate=0.8, step_offset=0, min_dim_size_to_factor=32, epsilon=1e-30, decay_rate_fn=decay
        ),
        optax.ema(0.9, debias=False, accumulator_dtype=jnp.float32),
    )
    large = [jax.tree.map(lambda x: 100.0 * x, g) for g in gradients]
    with jax.numpy_dtype_promotion("standard"):
        want, _ = run(theirs, large)
    ours, _ = run(Adafactor(mu_dtype="float32").scale(), large)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), ours, want)


@pytest.mark.parametrize("optimizer", [AdamW, Sgd, Lion, Adafactor])
def test_bfloat16_moments_are_stored_so_and_change_little(optimizer, gradients):
    half, state = run(optimizer(mu_dtype="bfloat16").scale(), gradients)
    full, _ = run(optimizer(mu_dtype="float32").scale(), gradients)
    stored = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.bfloat16]
    assert sorted(stored) == [(3,), (4, 3)]
    assert half[-1]["kernel"].dtype == jnp.float32
    if optimizer is not Lion:  # a sign may flip
        np.testing.assert_allclose(half[-1]["kernel"], full[-1]["kernel"], atol=0.03)
    assert optimizer is Lion or np.abs(half[-1]["kernel"] - full[-1]["kernel"]).max() > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zero_gradients_give_zero_steps(name, gradients):
    got, _ = run(OPTIMIZERS[name]().scale(), [jax.tree.map(np.zeros_like, g) for g in gradients])
    assert all(np.array_equal(u["kernel"], np.zeros((4, 3))) for u in got)


@pytest.mark.parametrize(
    ("cls", "kwargs", "words"),
    [
        (AdamW, {"b1": 1.0}, r"AdamW.b1=1.0 is not allowed; give a number in \[0, 1\)"),
        (AdamW, {"b2": -0.1}, "AdamW.b2=-0.1"),
        (AdamW, {"eps": 0.0}, "eps=0.0"),
        (Sgd, {"momentum": float("nan")}, "momentum=nan"),
        (Sgd, {"momentum": 0.0, "nesterov": True}, "nesterov=True"),
        (Adafactor, {"threshold": -1.0}, "threshold"),
        (Adafactor, {"b2_max": 1.0}, "b2_max"),
        (Lion, {"b2": 2.0}, "Lion.b2=2.0"),
    ],
)
def test_a_mistake_is_a_sentence(cls, kwargs, words):
    with pytest.raises(UserError, match=words):
        cls(**kwargs)
