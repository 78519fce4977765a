"""The int8 product for ``vit_jax bench kernels``."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.kernels import int8
from vit_jax.kernels.case import Case
from vit_jax.kernels.int8.rounding import TOP, quantise


@dataclasses.dataclass(frozen=True)
class Int8:
    """Weights in int8; rows of x that lie on their own steps, so that rounding them changes nothing.

    Attributes:
      activations: "float", or "dynamic" for rows in int8 too.
    """

    activations: int8.Activations = "float"

    def __call__(self, rows: int, inputs: int, outputs: int, dtype: Any) -> Case:
        keys = jax.random.split(jax.random.key(0), 2)
        steps = jax.random.randint(keys[0], (rows, inputs), -TOP, TOP + 1).at[:, 0].set(TOP)
        values, scale = quantise(jax.random.normal(keys[1], (inputs, outputs)) * inputs**-0.5, 0)
        size = jnp.dtype(dtype).itemsize
        return Case(
            run=lambda implementation, x, v, s: int8.int8(
                x, v, s, activations=self.activations, implementation=implementation
            ),
            x=steps.astype(dtype) * jnp.asarray(1 / 64, dtype),
            parameters=(values, scale[0]),
            dense=lambda v, s: v.astype(jnp.float32) * s[None],
            implementations=int8.IMPLEMENTATIONS[self.activations],
            flops=2.0 * rows * inputs * outputs,
            bytes=float(size * rows * (inputs + outputs) + values.size + 4 * outputs),
        )
