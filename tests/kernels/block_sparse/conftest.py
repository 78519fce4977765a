"""The TPU kernels off a TPU: interpreted."""

import functools

import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


@pytest.fixture
def interpreted():
    """Pallas kernels run in the simulator of a TPU's memory, where what nobody wrote is NaN."""
    with pltpu.force_tpu_interpret_mode():
        yield


@pytest.fixture
def interpreted_simply(monkeypatch):
    """Pallas kernels run as plain XLA.

    For what the simulator cannot do: ``vmap``, and meshes (it waits forever where devices outnumber the threads).
    """
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
