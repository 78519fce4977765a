"""Kernels for GPUs off a GPU: interpreted."""

import functools
import threading

import jax
import pytest
from jax._src.interpreters import mlir
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic_gpu import core
from jax._src.pallas.mosaic_gpu.interpret import params
from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import reset_gpu_interpret_mode_state


@pytest.fixture
def gpu_interpreted(monkeypatch):
    """Mosaic GPU kernels run in the simulator of shared memory, groups of warps, barriers and copies.

    Waits for copies out of shared memory and for the matrix unit are no-ops there. It lacks the cast of a layout, on
    its own values the identity, and compiles the program once for every thread and point of the grid instead of once.
    """
    same = mlir.lower_fun(lambda x, new_layout: x, multiple_results=False)
    mlir.register_lowering(core.layout_cast_p, same, platform="cpu")
    lock, compiled = threading.Lock(), {}

    def run(jaxpr, consts, *args):
        with lock:
            if jaxpr not in compiled:
                f = jax.jit(functools.partial(jax.core.eval_jaxpr, jaxpr))
                compiled[jaxpr] = f.lower(consts, *args).compile()
        compiled[jaxpr](consts, *args)

    monkeypatch.setattr(thread_map, "_run_jaxpr", run)
    with params.force_gpu_interpret_mode(params.InterpretGPUParams()):
        yield
    reset_gpu_interpret_mode_state()
