"""Two views with a momentum teacher and a centre: saved, resumed bit for bit, also in micro-batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.extend.two_views.objective import SelfDistill
from vit_jax import metrics
from vit_jax.config import parse
from vit_jax.models import ModelFn
from vit_jax.train import loop, rng
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import build
from vit_jax.train.step import views_of

OPTIONS = {
    "objective": SelfDistill(dim=8),
    "evaluators": ["knn(k=3)"],
    "best": "val/knn/accuracy",
    "augment": {"size": 8, "train": ["inception_crop", "flip"]},
    "duration": 6,
    "checkpoint_every": 2,
    "eval_every": 6,
}


SGD = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}


class Stop(Exception):
    pass


def rows(folder):
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in metrics.read(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_run_resumes_bit_for_bit(tiny, alone, tmp_path, accumulate):
    raw, states = tiny(**OPTIONS, accumulate=accumulate), {}

    def keep(event):
        states.setdefault(event.step, jax.device_get(event.state.objective))

    def die(event):
        if event.step == 5:
            raise Stop

    with alone():
        whole = loop.run(raw, tmp_path / "whole", hooks=[keep])
        with pytest.raises(Stop):
            loop.run(raw, tmp_path / "cut", hooks=[die])
        again = loop.run(raw, tmp_path / "cut")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert (tmp_path / "cut" / "checkpoints" / "6" / "objective").is_dir()
    jax.tree.map(np.testing.assert_array_equal, again.state.objective, whole.state.objective)
    assert not any("centre" in key for row in rows(tmp_path / "cut") for key in row)  # it is no metric
    moved = [np.abs(states[i]["centre"] - states[i + 1]["centre"]).max() for i in range(1, 6)]
    assert min(moved) > 0


@pytest.mark.slow
def test_one_step_is_the_papers(tiny):
    """Loss, teacher and centre of the first two steps against NumPy in float64, whole and in four slices."""
    found = {}
    for accumulate in (1, 4):
        setup = built(tiny(**OPTIONS, accumulate=accumulate, ema=None, model={"dropout": 0.0}, optim=SGD))
        state, batches = setup.init(), setup.train_batches(0)
        with jax.set_mesh(setup.mesh):
            for step in range(2):
                before, batch = jax.device_get(state), next(batches)
                state, measured = setup.step(state, jax.tree.map(jnp.asarray, batch))
                want = reference(setup, before, batch, step)
                np.testing.assert_allclose(measured["loss"], want["loss"], rtol=2e-5)
                np.testing.assert_allclose(state.objective["centre"], want["centre"], atol=1e-6)
                teacher = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, before.objective["teacher"], state.params)
                jax.tree.map(
                    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.objective["teacher"], teacher
                )
        batches.close()
        found[accumulate] = jax.device_get(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found[1], found[4])


def built(raw):
    return build(parse(TrainConfig, raw), jax.devices()[:1])


def reference(setup, state, batch, step):
    """Algorithm 1 in NumPy: only the model's logits come from the program."""
    o, c = setup.config.objective, setup.config
    augmented = jax.jit(functools.partial(views_of, c.augment.train_fn(4), 2))
    views = augmented(rng.stream(c.seed, "augment", step), batch)
    apply, head = jax.jit(ModelFn(setup.model), static_argnames="train"), jax.jit(o.head)
    logits = lambda p: [np.asarray(head(apply(p, v, train=False)), np.float64) for v in views["image"]]  # noqa: E731
    student, teacher = logits(state.params), logits(state.objective["teacher"])
    centre = np.asarray(state.objective["centre"], np.float64)

    def log_softmax(x):
        return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))

    p = [np.exp(log_softmax((t - centre) / o.teacher_temperature)) for t in teacher]
    q = [log_softmax(s / o.student_temperature) for s in student]
    loss = -0.5 * ((p[0] * q[1]).sum(-1) + (p[1] * q[0]).sum(-1)).mean()
    assert np.abs(views["image"][0] - views["image"][1]).max() > 0.1
    return {"loss": loss, "centre": 0.9 * centre + 0.1 * np.mean(teacher, (0, 1))}
