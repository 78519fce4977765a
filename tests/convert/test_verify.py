"""The proof itself: it passes on right weights, fails on wrong ones, and shows the peers what the model sees."""

import numpy as np
import pytest

from vit_jax import convert, models
from vit_jax.augment.policy import Norm
from vit_jax.convert import base, verify
from vit_jax.convert.base import Preprocess, Pretrained
from vit_jax.convert.tensors import Tensor

MODEL = models.create("vit", width=64, depth=2, heads=4, mlp_dim=96, patch=8, num_classes=5, activation="gelu_tanh")
PREPROCESS = Preprocess(24, 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def pretrained(rng):
    params = {p: Tensor.of(rng.normal(size=s, scale=0.1).astype(np.float32)) for p, s in base.shapes(MODEL, 24).items()}
    return Pretrained(MODEL, params, PREPROCESS, tuple("abcde"))


@pytest.mark.parametrize("to", ["timm", "hf", "npz", "vit_jax"])
def test_right_and_wrong_weights(to, pretrained, tmp_path, timm, transformers):
    path = tmp_path / ("x.npz" if to == "npz" else "x")
    convert.save(pretrained, path, to)
    rows = verify.verify(pretrained, [path])
    assert [row.images for row in rows] == ["noise", "photographs"]
    assert all(row.ok and row.difference <= 2e-5 and row.largest > 0.1 for row in rows), rows
    # one weight of one matrix is off: the difference is seen
    kernel = pretrained.params["encoder/block_1/mlp/mlp_in/kernel"].read()
    kernel[3, 5] += 0.5
    assert not any(row.ok for row in verify.verify(pretrained, [path]))
    assert all(str(path) in row.peer for row in rows)


def test_what_counts_as_equal():
    def row(difference, largest):
        return verify.Difference("x", "noise", difference, largest)

    assert row(1.9e-5, 0.1).ok and row(1.9e-4, 10.0).ok
    assert not row(2.1e-5, 0.1).ok and not row(2.1e-4, 10.0).ok
    assert not row(float("nan"), 1.0).ok and not row(float("inf"), 1.0).ok


def test_the_images():
    images = verify.inputs(PREPROCESS)
    assert {k: v.shape for k, v in images.items()} == {"noise": (4, 24, 24, 3), "photographs": (2, 24, 24, 3)}
    assert abs(images["noise"].std() - 1) < 0.05
    unit = images["photographs"] * np.float32(PREPROCESS.std) + np.float32(PREPROCESS.mean)
    assert unit.min() > -0.01 and unit.max() < 1.01 and unit.std() > 0.1  # photographs, normalised once
    again = Norm(PREPROCESS.mean, PREPROCESS.std)(unit)
    np.testing.assert_allclose(again, images["photographs"], atol=1e-5)


def test_float32_whatever_the_run_computed_in(pretrained):
    import dataclasses

    low = dataclasses.replace(pretrained, model=MODEL.clone(dtype="bfloat16"))
    batch = verify.inputs(PREPROCESS)["noise"]
    np.testing.assert_array_equal(verify.logits(low)(batch), verify.logits(pretrained)(batch))
