"""The second map after TopK for ``vit_jax bench kernels``."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.kernels import topk_mlp
from vit_jax.kernels.case import Case
from vit_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class TopKMLP:
    """Tokens whose kept units differ, the least that they can share.

    Attributes:
      k: units of a token that are not 0; all, if there are fewer.
    """

    k: int = 128

    def __call__(self, rows: int, inputs: int, outputs: int, dtype: Any) -> Case:
        if self.k < 1:
            raise UserError(f"k={self.k} is not a number of units; give 1 or more.")
        k = min(self.k, inputs)
        keys = jax.random.split(jax.random.key(0), 3)
        places = jax.random.permutation(keys[0], jnp.tile(jnp.arange(inputs) < k, (rows, 1)), axis=1, independent=True)
        x = jnp.where(places, jax.random.uniform(keys[1], (rows, inputs), minval=0.5, maxval=2), 0.0).astype(dtype)
        kernel = jax.random.normal(keys[2], (inputs, outputs)) * k**-0.5
        read = min(rows * k, inputs) * outputs
        return Case(
            run=lambda implementation, x, w: topk_mlp.topk_mlp(x, w, k=self.k, implementation=implementation),
            x=x,
            parameters=(kernel,),
            dense=lambda w: w,
            implementations=topk_mlp.IMPLEMENTATIONS,
            flops=2.0 * rows * k * outputs,
            bytes=float(jnp.dtype(dtype).itemsize * (rows * (inputs + outputs) + read)),
        )
