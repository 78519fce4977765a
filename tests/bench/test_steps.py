"""Steps of the benchmarks compute what they are named after."""

import jax
import numpy as np
import pytest

from vit_jax import models
from vit_jax.bench import steps

SMALL = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "num_classes": 3}


def test_training_learns_and_forward_does_not():
    model = models.create("vit", **SMALL, dtype="bfloat16")
    train, parameters = steps.candidate("train", model, 2, 8)
    with jax.numpy_dtype_promotion("standard"):  # optax's AdamW promotes
        losses = [float(train()[0]) for _ in range(20)]
    assert losses[-1] < losses[0]
    forward, same = steps.candidate("forward", model, 2, 8)
    assert same == parameters and forward().shape == (2, 3)
    np.testing.assert_array_equal(forward(), forward())


@pytest.mark.thorough
def test_running_statistics_stay_as_they_are():
    small = {"stem_width": 8, "widths": (8,), "hidden": ((8,),), "kernels": (3,), "strides": (1,), "excite": (False,)}
    model = models.create("mobilenet", **small, activations=("relu",), last_width=8, head_width=None, num_classes=3)
    train, parameters = steps.candidate("train", model, 2, 8)
    with jax.numpy_dtype_promotion("standard"):
        first, second = (float(train()[0]) for _ in range(2))
    assert second != first and parameters == 3 * 9 * 8 + 9 * 8 + 8 * 8 * 2 + 4 * 2 * 8 + 9 * 3
    assert steps.candidate("forward", model, 2, 8)[0]().shape == (2, 3)
