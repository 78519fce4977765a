"""The 2:4 product for ``vit_jax bench kernels``."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.kernels import sparse24
from vit_jax.kernels.case import Case
from vit_jax.kernels.sparse24.packed import compress
from vit_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Sparse24:
    """Packed weights in the compute type; the product has no fewer multiplications, only fewer bytes."""

    def __call__(self, rows: int, inputs: int, outputs: int, dtype: Any) -> Case:
        if inputs % 8:
            raise UserError(f"{inputs} inputs are no multiple of 8, which packed indices need; choose another size.")
        keys = jax.random.split(jax.random.key(0), 2)
        x = jax.random.normal(keys[0], (rows, inputs), dtype)
        values, index = compress(jax.random.normal(keys[1], (inputs, outputs)) * inputs**-0.5, dtype)
        size = jnp.dtype(dtype).itemsize
        return Case(
            run=lambda implementation, x, v, i: sparse24.sparse24(x, v, i, implementation=implementation),
            x=x,
            parameters=(values, index),
            dense=lambda v, i: sparse24.unpack(v, i).astype(jnp.float32),
            implementations=sparse24.IMPLEMENTATIONS,
            flops=2.0 * rows * inputs * outputs,
            bytes=float(size * (rows * (inputs + outputs) + values.size) + index.size),
        )
