"""Speed, and metrics that are not finite."""

import time

import numpy as np
import pytest

from vit_jax.train.goodput import Goodput
from vit_jax.train.meter import Meter
from vit_jax.types import UserError


@pytest.fixture
def meter(tiny, one_device, tmp_path):
    return Meter(one_device(tiny()), tmp_path, Goodput(time.monotonic()))


def values(loss=1.0, finite=True):
    return {"loss": np.float32(loss), "update_norm": np.float32(1), "finite": np.full(3, finite)}


def test_waiting_is_measured(meter):
    meter.push(1, values())
    with meter.waiting():
        time.sleep(0.05)
    waited, busy = meter.times()
    assert 0.05 <= waited <= busy < 5
    assert meter.times()[0] == 0
    meter.flush()
    speed = meter.speed()
    assert 0.5 < speed["speed/waiting"] <= 1
    assert 0 < speed["speed/images_per_s"] <= 16 / 0.05
    assert speed["speed/mfu"] > 0
    assert meter._goodput.seconds()["input"] >= 0.05


def test_the_first_of_several_steps_that_is_not_finite_is_named(meter):
    meter.push(7, values())
    meter.push(8, values(loss=np.inf))
    meter.push(9, values(loss=np.nan, finite=False))
    with pytest.raises(UserError, match=r"step 8: the update is not finite \(loss inf\); there is no checkpoint yet"):
        meter.flush()
    meter.push(10, values(loss=2.0))
    assert meter.flush()["loss"] == 2  # what was blamed once is gone
