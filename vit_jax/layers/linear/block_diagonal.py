"""Block-diagonal linear maps: the input in contiguous parts, each with a small dense map of its own.

Nothing mixes the parts. Monarch Mixer (arXiv:2310.12109) uses it in gated MLPs, where the product of two halves does.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import Checked, Range
from vit_jax.kernels.block_diagonal import block_diagonal, to_dense
from vit_jax.layers.linear.base import Init, LinearLayer, LinearSpec, logical
from vit_jax.types import Array, Params, UserError


def block_size(inputs: int, features: int, nblocks: int) -> tuple[int, int]:
    """Inputs and outputs per block, rounded up; the last block may have fewer, but not none.

    Raises:
      UserError: a block would be empty.
    """
    sizes = -(-inputs // nblocks), -(-features // nblocks)
    for what, n, size in zip(("inputs", "outputs"), (inputs, features), sizes, strict=True):
        if (nblocks - 1) * size >= n:
            raise UserError(
                f"nblocks={nblocks} leaves a block without any of the {n} {what}; use at most {-(-n // size)}."
            )
    return sizes


class BlockDiagonalLinear(LinearLayer):
    """``[..., in] -> [..., features]`` with parameters ``kernel [nblocks, in/nblocks, features/nblocks]`` and ``bias``.

    Where ``nblocks`` does not divide a size, the input is padded with zeros and the output cut.

    Attributes:
      nblocks: number of blocks.
      implementation: kernel that computes the product, a name in ``kernels.block_diagonal.IMPLEMENTATIONS``; None
        picks.
    """

    nblocks: int = 4
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, inputs, features = self.nblocks, x.shape[-1], self.features
        shape = (n, *block_size(inputs, features, n))
        kernel = self.param("kernel", logical(_blocks_of(self.kernel_init, inputs, features), (None,) * 3), shape)
        bias = self.make_bias()
        bias = None if bias is None else jnp.pad(bias, (0, n * shape[2] - features))
        x = jnp.pad(x.astype(self.dtype), [(0, 0)] * (x.ndim - 1) + [(0, n * shape[1] - inputs)])
        y = block_diagonal(x, kernel, bias, implementation=self.implementation)
        return jax.lax.slice_in_dim(y, 0, features, axis=-1)


def _blocks_of(kernel_init: Init, inputs: int, features: int) -> Init:
    """The diagonal blocks of the dense draw, scaled up so that an output has the variance it has with all inputs."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        n, size, _ = shape
        real = [min(size, inputs - k * size) for k in range(n)]
        scale = jnp.asarray([(inputs / r) ** 0.5 for r in real], dtype)
        return _diagonal(kernel_init(key, (inputs, features), dtype), shape) * jnp.reshape(scale, (n, 1, 1))

    return init


def _diagonal(kernel: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    n, size, features = shape
    padded = jnp.pad(kernel, [(0, n * size - kernel.shape[0]), (0, n * features - kernel.shape[1])])
    blocks = jnp.reshape(padded, (n, size, n, features))
    return jnp.stack([blocks[k, :, k] for k in range(n)])


@dataclasses.dataclass(frozen=True)
class BlockDiagonal(Checked, LinearSpec):
    """``nblocks`` independent maps of contiguous parts: 1/nblocks of the weights and of the arithmetic.

    The weight ``[nblocks, out/nblocks, in/nblocks]`` of the public layer is this ``kernel`` with its last two axes
    exchanged.

    Attributes:
      nblocks: number of blocks.
      implementation: kernel that computes the product, a name in ``kernels.block_diagonal.IMPLEMENTATIONS``; None
        picks. Parameters do not depend on it.
    """

    nblocks: Annotated[int, Range(1, 2**10)] = 4
    implementation: str | None = None

    def __call__(self, features: int, **kwargs: Any) -> BlockDiagonalLinear:
        return BlockDiagonalLinear(features, nblocks=self.nblocks, implementation=self.implementation, **kwargs)

    def to_dense(self, params: Params) -> tuple[jax.Array, jax.Array | None]:
        """As of every spec; a padded map's kernel has the rows and columns that ``Monarch.to_dense`` tells of."""
        kernel, bias = to_dense(params["kernel"]), params.get("bias")
        return kernel if bias is None else kernel[:, : bias.shape[0]], bias

    def from_dense(self, kernel: Array, bias: jax.Array | None) -> Params:
        """The diagonal blocks: the nearest in the Frobenius norm, which every other entry adds to all alike."""
        inputs, features = kernel.shape
        shape = (self.nblocks, *block_size(inputs, features, self.nblocks))
        blocks = _diagonal(jnp.asarray(kernel), shape)
        return {"kernel": blocks} if bias is None else {"kernel": blocks, "bias": bias}
