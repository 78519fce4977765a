"""Kernels for TPUs and GPUs off them: interpreted."""

import functools
import importlib
import threading
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vit_jax import sharding


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


@pytest.fixture
def same_on_a_mesh(interpreted_simply):
    """Checks value and gradient ``(f, x, parameters, g)`` on 2x2x2 devices against one."""

    def check(f, x, parameters, g):
        def both(x, g, *parameters):
            y, pull = jax.vjp(f, x, *parameters)
            return y, *pull(g)

        want = jax.jit(both)(x, g, *parameters)
        mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
        everywhere = jax.sharding.NamedSharding(mesh, jax.P())
        place = sharding.data_sharding(mesh) if len(x) % 4 == 0 else everywhere
        with jax.set_mesh(mesh):
            got = jax.jit(both)(*jax.device_put((x, g), place), *jax.device_put(tuple(parameters), everywhere))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

    return check


def _private(module: str, name: str) -> Any:
    """A part of JAX without a public name: the simulator of GPUs has none yet."""
    try:
        return getattr(importlib.import_module(f"jax._src.{module}"), name)
    except (ImportError, AttributeError):
        pytest.skip(f"jax {jax.__version__} has no jax._src.{module}.{name}, with which GPU kernels are interpreted")


@pytest.fixture
def gpu_interpreted(monkeypatch):
    """Mosaic GPU kernels run in the simulator of shared memory, groups of warps, barriers and copies.

    Waits for copies out of shared memory and for the matrix unit are no-ops there. It lacks the cast of a layout, on
    its own values the identity, and compiles the program once for every thread and point of the grid instead of once.
    """
    simulator = "pallas.mosaic_gpu.interpret"
    reset = _private(f"{simulator}.interpret_pallas_call", "reset_gpu_interpret_mode_state")
    params, mlir = _private(simulator, "params"), _private("interpreters", "mlir")
    same = mlir.lower_fun(lambda x, new_layout: x, multiple_results=False)
    mlir.register_lowering(_private("pallas.mosaic_gpu.core", "layout_cast_p"), same, platform="cpu")
    lock, compiled = threading.Lock(), {}

    def run(jaxpr, consts, *args):
        with lock:
            if jaxpr not in compiled:
                f = jax.jit(functools.partial(jax.core.eval_jaxpr, jaxpr))
                compiled[jaxpr] = f.lower(consts, *args).compile()
        compiled[jaxpr](consts, *args)

    monkeypatch.setattr(_private("pallas.mosaic.interpret", "thread_map"), "_run_jaxpr", run)
    with params.force_gpu_interpret_mode(params.InterpretGPUParams()):
        yield
    reset()
