"""The classification objective reads hard and soft labels and reports accuracy."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import create
from vit_jax.objectives import Classify
from vit_jax.types import UserError


def apply(params, x, *, train, rngs):
    return x @ params


def make(rng):
    batch = {
        "image": rng.normal(size=(7, 4)).astype(np.float32),
        "label": rng.integers(0, 3, 7).astype(np.int32),
        "mask": np.array([1, 1, 0, 1, 1, 1, 0], bool),
    }
    return batch, rng.normal(size=(4, 3)).astype(np.float32)


@pytest.mark.parametrize("output_activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("soft", [False, True])
def test_loss_and_accuracy(rng, output_activation, soft):
    batch, params = make(rng)
    z = batch["image"].astype(np.float64) @ params
    target = 0.9 * np.eye(3)[batch["label"]] + 0.1 / 3
    if output_activation == "softmax":
        each = -(target * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1)
    else:
        each = (target * np.log1p(np.exp(-z)) + (1 - target) * np.log1p(np.exp(z))).sum(1)
    m = batch["mask"]
    hits = (z.argmax(1) == batch["label"])[m].mean()
    if soft:
        batch = {**batch, "label": np.eye(3, dtype=np.float32)[batch["label"]]}
    loss, metrics = Classify(output_activation, label_smoothing=0.1)(apply, params, batch, {}, train=True)
    np.testing.assert_allclose(loss, each[m].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"].value(), hits, rtol=1e-6)


def test_no_smoothing_outside_training(rng):
    batch, params = make(rng)
    smoothed = Classify(label_smoothing=0.3)(apply, params, batch, {}, train=False)[0]
    np.testing.assert_allclose(smoothed, Classify()(apply, params, batch, {}, train=True)[0], rtol=1e-6)


IMAGES = types.SimpleNamespace(num_classes=7, captions=0)


def test_fit_model_sets_the_head():
    assert Classify().fit_model(create("vit_ti16"), IMAGES).num_classes == 7


def test_smoothing_out_of_range():
    with pytest.raises(UserError, match=r"label_smoothing=1.0 is not allowed; give a number in \[0, 1\)"):
        Classify(label_smoothing=1.0)


def test_bfloat16_logits_are_scored_in_float32(rng):
    batch, params = make(rng)
    half = lambda p, x, *, train, rngs: apply(p, x, train=train, rngs=rngs).astype(jnp.bfloat16)  # noqa: E731
    assert Classify()(half, params, batch, {}, train=False)[0].dtype == jnp.float32


def test_it_trains_image_models_on_classes():
    captions = types.SimpleNamespace(num_classes=0, captions=3)
    with pytest.raises(UserError, match=r"captions and no classes, and to classify takes two; set data.text"):
        Classify().fit_model(create("vit_ti16"), captions)
    one = types.SimpleNamespace(num_classes=1, captions=0, class_names=("cat",))
    with pytest.raises(UserError, match=r"one class only \(cat\); to classify takes two"):
        Classify().fit_model(create("vit_ti16"), one)
    with pytest.raises(UserError, match=r"TwoTower embeds images and texts; take objective='contrast'"):
        Classify().fit_model(create("clip_vit_b32"), IMAGES)
