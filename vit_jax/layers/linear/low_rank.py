"""Linear maps through a bottleneck: ``x @ kernel_1 @ kernel_2 + bias``."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import Checked, Size
from vit_jax.layers.linear.base import Init, LinearLayer, LinearSpec, logical, matmul
from vit_jax.layers.linear.projection import truncate
from vit_jax.types import Array, Params, UserError

DENSE = ", or keep it dense."


def rows_of(kernel_init: Init, inputs: int) -> Init:
    """Initialiser of a second factor ``[rows, features]``, after a first that leaves the variance as it is.

    The first ``rows`` of what ``kernel_init`` draws for the dense map ``[inputs, features]``, times
    ``sqrt(inputs / rows)``: then an entry of the product has the variance v that the dense entry had. With entries of
    variance 1/inputs in the first factor, it is ``rows * (1/inputs) * (v inputs/rows) = v``, whatever v depends on
    (the fan, parts fused along the output, a constant, zero). A dense draw of zeros gives a map of zeros that learns,
    because the first factor is not zero.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        rows, features = shape
        return kernel_init(key, (inputs, features), dtype)[:rows] * (inputs / rows) ** 0.5

    return init


class LowRankLinear(LinearLayer):
    """``[..., in] -> [..., features]``: ``kernel_1 [in, rank]``, ``kernel_2 [rank, features]``, ``bias [features]``.

    Attributes:
      rank: size of the bottleneck; for the start of both factors see :func:`rows_of`.
    """

    rank: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, rank = x.shape[-1], self.rank
        check_rank(rank, inputs, self.features, DENSE)
        first, second = nn.initializers.normal(inputs**-0.5), rows_of(self.kernel_init, inputs)
        kernel_1 = self.param("kernel_1", logical(first, (self.axes[0], None)), (inputs, rank))
        kernel_2 = self.param("kernel_2", logical(second, (None, self.axes[1])), (rank, self.features))
        return matmul(matmul(x.astype(self.dtype), kernel_1), kernel_2, self.make_bias())


@dataclasses.dataclass(frozen=True)
class LowRank(Checked, LinearSpec):
    """A map of rank ``rank``: ``rank * (in + out)`` weights instead of ``in * out``.

    Attributes:
      rank: size of the bottleneck, at most min(in, out).
    """

    rank: Size = 64

    def __call__(self, features: int, **kwargs: Any) -> LowRankLinear:
        return LowRankLinear(features, rank=self.rank, **kwargs)

    def to_dense(self, params: Params) -> tuple[jax.Array, jax.Array | None]:
        kernel = jnp.matmul(params["kernel_1"], params["kernel_2"], precision=jax.lax.Precision.HIGHEST)
        return kernel, params.get("bias")

    def from_dense(self, kernel: Array, bias: jax.Array | None) -> Params:
        """The truncated SVD, the nearest map of that rank (Eckart-Young), balanced; on the host."""
        check_rank(self.rank, kernel.shape[0], kernel.shape[1], DENSE)
        left, right, _ = truncate(kernel, self.rank)
        params = {"kernel_1": jnp.asarray(left), "kernel_2": jnp.asarray(right)}
        return params if bias is None else {**params, "bias": bias}


def check_rank(rank: int, inputs: int, features: int, remedy: str = ".") -> None:
    """Raises a :class:`UserError` for a rank that no map of this size has; ``remedy`` ends the sentence."""
    most = min(inputs, features)
    if rank > most:
        raise UserError(f"rank={rank} is more than a map {inputs} -> {features} can have; use at most {most}{remedy}")
