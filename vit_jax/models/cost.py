"""Model FLOPs and what a device could do: the two sides of model FLOPs utilisation (MFU)."""

from __future__ import annotations

import functools
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, jaxprs_in_params
from jax.sharding import Mesh

from vit_jax import trees
from vit_jax.layers.predicted import Predicted
from vit_jax.models.base import abstract_init

PEAK = {
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12, "TPU v5": 459e12,
    "TPU v6 lite": 918e12, "TPU v6e": 918e12, "NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12,
}  # fmt: skip
"""Published dense bfloat16 FLOP/s by the beginning of the device kind, longest match first."""


def flops(model: nn.Module, inputs: tuple[Any, ...]) -> float:
    """FLOPs (2 per multiply-add) of one forward pass over ``inputs`` (shapes), by XLA's count, with all turns of loops.

    They are counted as for a CPU, whatever the program will run on: accelerators do not count, and fused kernels hide
    their products. Exponentials are not among them; of a ``while_loop`` one turn is. Not a number where
    ``JAX_PLATFORMS`` leaves the CPU out.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # training must not end for want of a figure of its log
        return float("nan")
    with jax.set_mesh(Mesh(np.asarray([cpu]), "x")), jax.default_device(cpu):
        return _count(jax.make_jaxpr(model.apply)(nn.unbox(abstract_init(model, inputs)), *inputs), {})


def _count(program: ClosedJaxpr, known: dict[str, float]) -> float:
    """XLA's count, in which the body of a loop stands once, and the other turns of every loop; ``known`` are bodies."""
    found: Any = jax.jit(jaxpr_as_fun(program)).lower(*program.in_avals).cost_analysis()
    return float(found["flops"]) + _turns(program.jaxpr, known)


def _turns(program: Jaxpr, known: dict[str, float]) -> float:
    """FLOPs that :func:`_count` adds to XLA's."""
    total = 0.0
    for equation in program.eqns:
        inside = sum(_turns(p, known) for p in jaxprs_in_params(equation.params))
        if equation.primitive.name == "scan":
            body = equation.params["jaxpr"]
            if (text := str(body)) not in known:
                known[text] = _count(body, known)
            inside += (equation.params["length"] - 1) * known[text]
        total += inside
    return total


def spared(model: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Those of :func:`flops` that predicted masks leave nothing to do: of pairs of tokens, and of coefficients."""
    values = trees.fields(model)
    spec = values.get("logit_bias")
    if not isinstance(spec, Predicted):
        return 0.0
    found = jax.eval_shape(functools.partial(model.apply, method="features"), abstract_init(model, inputs), *inputs)
    n = found.tokens.shape[1]
    pairs = 4 * (n - spec.count(n)) * values["width"]
    coefficients = 2 * n * max(0, n // spec.tokens - spec.coefficients) * values["heads"]
    return float(values["depth"] * (n - spec.rows) * (pairs + coefficients))


def peak(device: jax.Device, dtype: str) -> float:
    """FLOP/s the device could do: published for accelerators, else measured with one large product in ``dtype``.

    A device is measured once a process.
    """
    known = [kind for kind in PEAK if device.device_kind.startswith(kind)]
    return PEAK[max(known, key=len)] if known else _measure(device, dtype)


@functools.cache
def _measure(device: jax.Device, dtype: str) -> float:
    n, best = 1024, float("inf")
    product = jax.jit(lambda x: jax.lax.dot(x, x, preferred_element_type=jnp.float32).astype(x.dtype))
    with jax.set_mesh(Mesh(np.asarray([device]), "x")):  # whatever mesh the caller computes on
        x = jax.device_put(jnp.ones((n, n), dtype), device)
        jax.block_until_ready(product(x))
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(product(x))
            best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best
