"""The block-diagonal product for ``vit_jax bench kernels``."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.kernels import block_diagonal
from vit_jax.kernels.case import Case
from vit_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class BlockDiagonal:
    """Blocks of equal sizes.

    Attributes:
      nblocks: how many.
    """

    nblocks: int = 4

    def __call__(self, rows: int, inputs: int, outputs: int, dtype: Any) -> Case:
        n = self.nblocks
        if n < 1 or inputs % n or outputs % n:
            raise UserError(f"{n} blocks do not divide {inputs} x {outputs} evenly; choose other sizes.")
        keys = jax.random.split(jax.random.key(0), 2)
        x = jax.random.normal(keys[0], (rows, inputs), dtype)
        kernel = jax.random.normal(keys[1], (n, inputs // n, outputs // n)) * (inputs / n) ** -0.5
        return Case(
            run=lambda implementation, x, k: block_diagonal.block_diagonal(x, k, implementation=implementation),
            x=x,
            parameters=(kernel,),
            dense=block_diagonal.to_dense,
            implementations=block_diagonal.IMPLEMENTATIONS,
            flops=2.0 * rows * kernel.size,
            bytes=float(jnp.dtype(dtype).itemsize * (rows * (inputs + outputs) + kernel.size)),
        )
