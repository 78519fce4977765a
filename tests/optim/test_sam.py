from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.optim.sam import SAM, Asam, Gsam, LookSam, Sam, dot, norm, orthogonal
from vit_jax.types import UserError

LR, STEPS = 0.2, 7


def relative(step):
    """A made-up learning rate: up, then down."""
    return jnp.asarray([0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0], jnp.float32)[step]


def descend(variant, problem, steps=STEPS):
    """Flat parameters after each step of plain gradient descent along the variant's direction."""
    tx = optax.chain(variant.transform(relative), optax.scale(-LR))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(problem.grad(params), state, params, grad_fn=problem.grad)
        return optax.apply_updates(params, updates), state

    params, state, out = problem.params, tx.init(problem.params), []
    for _ in range(steps):
        params, state = step(params, state)
        out.append(problem.flat(params))
    return np.array(out)


def sam(w, grad, step, rho):
    g = grad(w)
    return grad(w + rho * g / np.linalg.norm(g))


def asam(w, grad, step, rho, eta, adaptive):
    t = np.where(adaptive, np.abs(w) + eta, 1.0)
    g = grad(w)
    return grad(w + rho * t**2 * g / np.linalg.norm(t * g))


def gsam(w, grad, step, rho_max, rho_min, alpha):
    rho = rho_min + (rho_max - rho_min) * float(relative(step))
    g = grad(w)
    gp = grad(w + rho * g / np.linalg.norm(g))
    parallel = (g @ gp) / (gp @ gp) * gp
    return gp - alpha * (g - parallel)


def reference(direction, problem, m):
    w, out = problem.flat(problem.params), []
    for step in range(STEPS):
        groups = [(problem.numpy, 1.0)] if m is None else problem.numpy.groups(m)
        w = w - LR * sum(weight * direction(w, grad, step) for grad, weight in groups)
        out.append(w)
    return np.array(out)


KERNEL_AND_SCALE = np.repeat([True, False, True], [15, 3, 5])
CASES = {
    "sam": (Sam, sam, {"rho": 0.5}),
    "asam": (Asam, functools.partial(asam, adaptive=KERNEL_AND_SCALE), {"rho": 0.9, "eta": 0.05}),
    "gsam": (Gsam, gsam, {"rho_max": 0.7, "rho_min": 0.1, "alpha": 0.6}),
}


@pytest.mark.first(4)
@pytest.mark.parametrize("m", [None, 4, 12])
@pytest.mark.parametrize("name", CASES)
def test_equals_float64_numpy(name, m, problem):
    variant, direction, settings = CASES[name]
    got = descend(variant(**settings, m=m), problem)
    np.testing.assert_allclose(got, reference(functools.partial(direction, **settings), problem, m), atol=5e-6)


@pytest.mark.parametrize("m", [None, 4])
def test_looksam_equals_float64_numpy(m, problem):
    rho, alpha, every = 0.8, 0.6, 3
    w, expected = problem.flat(problem.params), []
    for step in range(STEPS):
        g = problem.numpy(w)
        if step % every == 0:
            groups = [(problem.numpy, 1.0)] if m is None else problem.numpy.groups(m)
            direction = sum(weight * sam(w, grad, step, rho) for grad, weight in groups)
            cos = g @ direction / np.linalg.norm(g) / np.linalg.norm(direction)
            g_v = direction - np.linalg.norm(direction) * cos * g / np.linalg.norm(g)
        else:
            direction = g + alpha * np.linalg.norm(g) / np.linalg.norm(g_v) * g_v
        w = w - LR * direction
        expected.append(w)
    np.testing.assert_allclose(descend(LookSam(rho, alpha, every, m), problem), expected, atol=2e-5)


def test_groups_and_variants_differ(problem):
    """Otherwise the comparisons above would prove little."""
    runs = [descend(v, problem)[-1] for v in (Sam(0.5), Sam(0.5, 4), Asam(0.5), Gsam(0.5, 0.1), LookSam(0.5))]
    assert min(np.abs(a - b).max() for i, a in enumerate(runs) for b in runs[:i]) > 1e-3


@pytest.mark.parametrize("m", [None, 6])
def test_special_cases_are_sam(m, problem):
    expected = descend(Sam(0.3, m), problem, 3)
    np.testing.assert_allclose(descend(Gsam(0.3, 0.3, 0.0, m), problem, 3), expected, rtol=1e-6)
    np.testing.assert_allclose(descend(LookSam(0.3, 0.7, 1, m), problem, 3), expected, rtol=1e-6)
    np.testing.assert_allclose(descend(Asam(0.3, weights="none of them", m=m), problem, 3), expected, rtol=1e-6)


@pytest.mark.parametrize("variant", [Sam, Asam, lambda rho, m: Gsam(rho, 0.0, m=m), LookSam])
def test_a_vanishing_radius_is_gradient_descent(variant, problem):
    w = problem.flat(problem.params)
    for got in descend(variant(1e-9, m=4), problem, 3):
        w = w - LR * problem.numpy(w)
        np.testing.assert_allclose(got, w, atol=2e-6)


@pytest.mark.parametrize("name", SAM)
def test_a_zero_gradient_gives_a_zero_direction(name, problem):
    problem.grad.y = jnp.zeros_like(problem.grad.y)
    np.testing.assert_array_equal(descend(SAM[name](m=4), problem), np.tile(problem.flat(problem.params), (STEPS, 1)))


def test_gsam_radius_follows_the_learning_rate_and_never_turns_negative(problem):
    """In the warm-up, below the final learning rate, it stays at ``rho_min`` (here 0: the clean point)."""
    seen = []
    tx = Gsam(0.4, 0.0).transform(lambda step: jnp.clip((step.astype(jnp.float32) - 2) / 4, 0.0, 1.0))
    state = tx.init(problem.params)
    start = problem.flat(problem.params)
    for _ in range(7):
        record = lambda p: (seen.append(np.linalg.norm(problem.flat(p) - start)), problem.grad(p))[1]  # noqa: E731
        _, state = tx.update(problem.grad(problem.params), state, problem.params, grad_fn=record)
    np.testing.assert_allclose(seen, [0, 0, 0, 0.1, 0.2, 0.3, 0.4], atol=1e-6)


def test_asam_is_invariant_to_rescaling(problem):
    """Two linear maps in a row: scaling one up and the other down leaves ASAM's perturbed loss alone, not SAM's."""

    def worst(variant, a):
        params = {"one": {"kernel": a * jnp.asarray([1.0, -2.0])}, "two": {"kernel": jnp.asarray([0.5, 1.5]) / a}}
        loss = lambda p: jnp.sum(jnp.square(p["one"]["kernel"] * p["two"]["kernel"] - 1.0))  # noqa: E731
        at = []
        grad_fn = lambda p: (at.append(float(loss(p))), p)[1]  # noqa: E731
        tx = variant.transform(relative)
        tx.update(jax.grad(loss)(params), tx.init(params), params, grad_fn=grad_fn)
        return at[0]

    assert worst(Asam(0.3, eta=0.0), 1.0) == pytest.approx(worst(Asam(0.3, eta=0.0), 3.0), rel=1e-5)
    assert worst(Sam(0.3), 1.0) != pytest.approx(worst(Sam(0.3), 3.0), rel=0.1)


def test_looksam_calls_for_a_second_gradient_only_on_its_sam_steps(problem):
    """At run time, by a callback: ``lax.cond`` must not compute both branches."""
    calls = []

    def grad_fn(params):
        jax.debug.callback(lambda: calls.append(1))
        return problem.grad(params)

    tx = LookSam(every=3).transform(relative)
    step = jax.jit(lambda state: tx.update(problem.grad(problem.params), state, problem.params, grad_fn=grad_fn)[1])
    state = tx.init(problem.params)
    for _ in range(7):
        state = step(state)
    jax.effects_barrier()
    assert len(calls) == 3
    assert int(state.step) == 7


def test_a_missing_grad_fn_says_so(problem):
    for cls in SAM.values():
        tx = cls().transform(relative)
        with pytest.raises(UserError, match="SAM needs a second gradient"):
            tx.update(problem.params, tx.init(problem.params), problem.params)


@pytest.mark.parametrize(
    ("cls", "kwargs", "words"),
    [
        (Sam, {"rho": 0.0}, "Sam.rho=0.0 is not allowed; give a positive number"),
        (Sam, {"rho": float("nan")}, "rho=nan"),
        (Sam, {"m": 0}, "Sam.m=0 is not allowed"),
        (Asam, {"rho": -1.0}, "Asam.rho=-1.0"),
        (Asam, {"eta": -0.1}, "eta=-0.1"),
        (Gsam, {"rho_max": 0.1, "rho_min": 0.2}, r"rho_min=0.2 is not allowed; give a value in \[0, rho_max=0.1\]"),
        (Gsam, {"alpha": -1.0}, "alpha"),
        (LookSam, {"every": 0}, "every=0"),
        (LookSam, {"alpha": float("inf")}, "alpha=inf"),
    ],
)
def test_a_mistake_is_a_sentence(cls, kwargs, words):
    with pytest.raises(UserError, match=words):
        cls(**kwargs)


def test_vector_algebra_is_global_and_in_float32(rng):
    a, b = ({"x": rng.normal(size=(3, 2)), "y": rng.normal(size=4)} for _ in range(2))
    flat = lambda t: np.concatenate([np.asarray(v, np.float64).ravel() for v in jax.tree.leaves(t)])  # noqa: E731
    to = lambda t, dtype: jax.tree.map(lambda v: jnp.asarray(v, dtype), t)  # noqa: E731
    assert float(norm(to(a, jnp.float32))) == pytest.approx(np.linalg.norm(flat(a)), rel=1e-6)
    assert dot(to(a, jnp.bfloat16), to(b, jnp.bfloat16)).dtype == jnp.float32
    rest = orthogonal(to(a, jnp.float32), to(b, jnp.float32))
    np.testing.assert_allclose(flat(rest) @ flat(b), 0, atol=1e-5)
    np.testing.assert_allclose(
        flat(rest), flat(a) - flat(b) * (flat(a) @ flat(b)) / (flat(b) @ flat(b)), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(
        flat(orthogonal(to(a, jnp.float32), jax.tree.map(jnp.zeros_like, rest))), flat(to(a, jnp.float32))
    )
