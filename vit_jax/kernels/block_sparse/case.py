"""The block-sparse product for ``vit_jax bench kernels``."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.kernels import block_sparse
from vit_jax.kernels.block_sparse import patterns
from vit_jax.kernels.case import Case
from vit_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class BlockSparse:
    """Blocks of a butterfly pattern.

    Attributes:
      density: of the weights.
      block: rows and columns of a block.
      known: whether the pattern is known to the compiler, or an argument of the program.
    """

    density: float = 0.25
    block: int = 32
    known: bool = True

    def __call__(self, rows: int, inputs: int, outputs: int, dtype: Any) -> Case:
        block = self.block
        if block < 1 or inputs % block or outputs % block:
            raise UserError(f"blocks of {block} do not divide {inputs} x {outputs}; choose another block or size.")
        per = patterns.count(self.density, inputs // block)
        index = patterns.butterfly(inputs // block, outputs // block, per)
        keys = jax.random.split(jax.random.key(0), 2)
        kernel = jax.random.normal(keys[1], (per, block, outputs)) * (per * block) ** -0.5
        size, rest = jnp.dtype(dtype).itemsize, () if self.known else (jnp.asarray(index),)
        return Case(
            run=lambda implementation, x, kernel, *at: block_sparse.block_sparse(
                x, kernel, at[0] if at else index, implementation=implementation
            ),
            x=jax.random.normal(keys[0], (rows, inputs), dtype),
            parameters=(kernel, *rest),
            dense=lambda kernel, *at: block_sparse.to_dense(kernel, index, inputs),
            implementations=block_sparse.IMPLEMENTATIONS,
            flops=2.0 * rows * kernel.size,
            bytes=float(size * (rows * (inputs + outputs) + kernel.size)),
        )
