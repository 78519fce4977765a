"""Dense linear maps in int8, for inference."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import config
from vit_jax.kernels.int8 import IMPLEMENTATIONS, Activations, int8
from vit_jax.kernels.int8.rounding import quantise
from vit_jax.layers.linear.base import LinearLayer, LinearSpec, logical
from vit_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Int8(LinearSpec):
    """A trained dense map in a quarter of its bytes: int8 weights and a float32 scale for each output.

    Attributes:
      activations: "float": only the weights are rounded; "dynamic": every token too, as it comes, to multiply integers.
      implementation: name in ``vit_jax.kernels.int8.IMPLEMENTATIONS``; None: the first that runs.
    """

    activations: Activations = "float"
    implementation: str | None = None

    def __post_init__(self) -> None:
        config.lookup(IMPLEMENTATIONS, self.activations, "activations of int8")

    def __call__(self, features: int, **kwargs: Any) -> Int8Linear:
        return Int8Linear(features, spec=self, **kwargs)

    def to_dense(self, params: Params) -> tuple[jax.Array, jax.Array | None]:
        """The float32 kernel that the integers stand for."""
        return params["kernel_values"].astype(jnp.float32) * params["kernel_scale"][None], params.get("bias")

    def from_dense(self, kernel: jax.Array, bias: jax.Array | None) -> Params:
        """To the nearest of 255 steps, whose size is 1/127 of an output's largest weight."""
        values, scale = _quantise(kernel)
        params = {"kernel_values": values, "kernel_scale": scale}
        return params if bias is None else {**params, "bias": bias}


@jax.jit
def _quantise(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    values, scale = quantise(kernel, 0)
    return values, scale[0]


class Int8Linear(LinearLayer):
    """``[..., in] -> [..., features]`` with ``kernel_values`` int8 ``[in, features]``, ``kernel_scale`` and ``bias``.

    Attributes:
      spec: what is rounded, and who computes.
    """

    spec: Int8 = Int8()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # One key for both parts: they are parts of one kernel.
        key = self.make_rng("params") if self.is_initializing() else jax.random.key(0)

        def part(name: str, axes: tuple[str | None, ...]) -> jax.Array:
            def init(_: jax.Array) -> jax.Array:
                return self.spec.from_dense(self.kernel_init(key, (x.shape[-1], self.features)), None)[name]

            return self.param(name, logical(init, axes))

        values, scale = part("kernel_values", self.axes), part("kernel_scale", self.axes[1:])
        run = functools.partial(int8, activations=self.spec.activations, implementation=self.spec.implementation)
        return run(x.astype(self.dtype), values, scale, self.make_bias())
