"""The Monarch product for ``vit_jax bench kernels``."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.kernels import monarch
from vit_jax.kernels.case import Case
from vit_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Monarch:
    """Factors of the middle width min(in, out), as the layer has them.

    Attributes:
      nblocks: blocks of each factor.
    """

    nblocks: int = 4

    def __call__(self, rows: int, inputs: int, outputs: int, dtype: Any) -> Case:
        middle, n = min(inputs, outputs), self.nblocks
        if n < 1 or inputs % n or outputs % n or middle % n**2:
            raise UserError(f"{n} blocks do not divide {inputs} x {outputs} evenly; choose other sizes.")
        q, p, s = middle // n, inputs // n, outputs // n
        keys = jax.random.split(jax.random.key(0), 3)
        x = jax.random.normal(keys[0], (rows, inputs), dtype)
        first = jax.random.normal(keys[1], (n, q, p)) * p**-0.5
        second = jax.random.normal(keys[2], (n, s, q)) * q**-0.5
        size, weights = jnp.dtype(dtype).itemsize, first.size + second.size
        return Case(
            run=lambda implementation, x, a, b: monarch.monarch(x, a, b, implementation=implementation),
            x=x,
            parameters=(first, second),
            dense=monarch.to_dense,
            implementations=monarch.IMPLEMENTATIONS,
            flops=2.0 * rows * weights,
            bytes=float(size * (rows * (inputs + outputs) + weights)),
        )
