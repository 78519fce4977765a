"""Distillation losses against float64 NumPy and open_clip."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.losses import distill
from vit_jax.types import UserError


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(f, student, teacher):
    """The losses [B], and the gradients of their sum."""
    value, back = jax.vjp(f, student, teacher)
    return value, *back(jnp.ones_like(value))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_logits(temperature, rng):
    student, teacher = rng.normal(0, 3, size=(2, 5, 7))
    q, p = (softmax(z / temperature) for z in (student, teacher))
    want = temperature**2 * (p * np.log(p / q)).sum(1)
    args = student.astype(np.float32), teacher.astype(np.float32)
    f = lambda s, t: distill.logit_distillation(s, t, temperature=temperature)  # noqa: E731
    value, to_student, to_teacher = with_gradients(f, *args)
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(to_student, temperature * (q - p), rtol=1e-4, atol=2e-6)
    np.testing.assert_array_equal(to_teacher, 0)
    np.testing.assert_allclose(with_gradients(f, args[0], args[0])[0], 0, atol=1e-5)


def test_features(rng):
    s, t = rng.normal(size=(2, 5, 7)).astype(np.float32)
    cosine, l2 = (functools.partial(with_gradients, f) for f in (distill.cosine_distillation, distill.l2_distillation))
    np.testing.assert_allclose(cosine(s, t)[0], 1 - (unit(s) * unit(t)).sum(1), rtol=1e-5)
    np.testing.assert_allclose(cosine(s, -3 * s)[0], 2, rtol=1e-6)
    np.testing.assert_allclose(l2(s, t)[0], ((s - t) ** 2).sum(1), rtol=1e-5)
    for f in (cosine, l2):
        _, to_student, to_teacher = f(s, t)
        assert np.abs(to_student).min() > 0 and not to_teacher.any()
        assert jax.eval_shape(f, s.astype(jnp.bfloat16), t.astype(jnp.bfloat16))[0].dtype == jnp.float32
    assert np.isfinite(cosine(np.zeros_like(s), t)[1]).all()


def test_affinity(rng):
    image, text = (unit(x) for x in rng.normal(size=(2, 6, 4)))
    teacher_image, teacher_text = (unit(x) for x in rng.normal(size=(2, 6, 9)))
    mask = np.array([1, 1, 0, 1, 1, 0], bool)
    keep = np.flatnonzero(mask)
    want = []
    for i in keep:
        value = 0
        for a, b, c, d in ((image, text, teacher_image, teacher_text), (text, image, teacher_text, teacher_image)):
            p, q = softmax(20.0 * d[keep] @ c[i]), softmax(7.0 * b[keep] @ a[i])
            value -= (p * np.log(q)).sum() / 2
        want.append(value)
    student = [x.astype(np.float32) for x in (image, text, np.array(7.0))]
    teacher = [x.astype(np.float32) for x in (teacher_image, teacher_text, np.array(20.0))]
    student[0][2] = np.nan
    affinity = lambda s, t: distill.affinity_distillation(*s, *t, mask)  # noqa: E731
    value, to_student, to_teacher = with_gradients(affinity, student, teacher)
    np.testing.assert_allclose(value[mask], want, rtol=1e-5)
    np.testing.assert_array_equal(value[~mask], 0)
    assert all(np.isfinite(g).all() and g.any() for g in to_student)
    assert not any(g.any() for g in to_teacher)


def test_affinity_against_open_clip(open_clip, torch, rng):
    image, text = (unit(x).astype(np.float32) for x in rng.normal(size=(2, 6, 4)))
    teacher_image, teacher_text = (unit(x).astype(np.float32) for x in rng.normal(size=(2, 6, 9)))
    theirs = importlib.import_module(f"{open_clip.__name__}.loss").DistillClipLoss()
    t = [torch.tensor(x) for x in (image, text, np.float32(7), teacher_image, teacher_text, np.float32(20))]
    want = theirs(t[0], t[1], t[2], t[3], t[4], t[5])[1]
    ours = distill.affinity_distillation(
        image, text, np.float32(7), teacher_image, teacher_text, np.float32(20), np.ones(6, bool)
    )
    np.testing.assert_allclose(ours.mean(), want.item(), rtol=1e-6)


def test_temperature_out_of_range():
    with pytest.raises(UserError, match=r"temperature=0.0 is not allowed"):
        distill.logit_distillation(np.zeros((1, 2)), np.zeros((1, 2)), temperature=0.0)
