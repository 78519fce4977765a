"""Monarch linear maps (Dao et al. 2022, arXiv:2204.00595): two block-diagonal products and a permutation between them.

The layer is the rectangular one of the public code, with blocks larger than sqrt(n): four blocks have 25 to 50 % of the
weights. Its parameters are those of the public ``MonarchLinear`` under other names, same shapes, same meaning:

    ``blkdiag1 [k, q, p]`` -> ``kernel_1``    ``blkdiag2 [l, s, r]`` -> ``kernel_2``    ``bias [out]`` -> ``bias``
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import Checked, Range
from vit_jax.kernels.monarch import monarch, to_dense
from vit_jax.kernels.monarch_mlp.factors import Factors
from vit_jax.layers.linear.base import Init, LinearLayer, LinearSpec, logical
from vit_jax.layers.linear.low_rank import rows_of
from vit_jax.layers.linear.projection import factor_shapes, project
from vit_jax.types import Array, Params


class MonarchLinear(LinearLayer):
    """``[..., in] -> [..., features]``, ``kernel_1 [k, q, p]``, ``kernel_2 [l, s, r]`` and ``bias [features]``.

    Sizes are those of ``projection.factor_shapes``; where ``nblocks`` does not divide, the input is padded with zeros
    and the output cut. Each entry of the product starts with the variance that ``kernel_init`` gives a dense kernel
    (see ``low_rank.rows_of``; the first factor has variance nblocks/in). The published layer draws each factor from
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)), so that an output has 1/9 of the variance of the input where a dense layer
    drawn so has 1/3 (HazyResearch/fly, src/models/layers/monarch_linear.py, lines 34-42).

    Attributes:
      nblocks: blocks of each factor.
      implementation: kernel that computes the product, a name in ``kernels.monarch.IMPLEMENTATIONS``; None picks.
      input_parts: internal, set by the neighbouring layers: number of blocks in whose order (as :func:`blocked` leaves
        it) the input comes; 1 is natural order.
      blocked: internal, set by the neighbouring layers: leave the output in the order (block, row) instead of (row,
        block), which saves a permutation.
    """

    nblocks: int = 4
    implementation: str | None = None
    input_parts: int = 1
    blocked: bool = False

    def __call__(self, x: jax.Array) -> jax.Array:
        factors = self.factors(x.shape[-1])
        more = factors.kernel_1.shape[0] * factors.kernel_1.shape[2] - x.shape[-1]
        assert not (self.input_parts > 1 and more), "padded in blocks"
        x = jnp.pad(x.astype(self.dtype), [(0, 0)] * (x.ndim - 1) + [(0, more)])
        parts, run = self.input_parts, self.implementation
        y = monarch(x, *factors, input_parts=parts, blocked=self.blocked, implementation=run)
        return jax.lax.slice_in_dim(y, 0, self.features, axis=-1)

    @nn.compact
    def factors(self, inputs: int) -> Factors:
        """The parameters of the map of so many inputs, filled up with zeros where blocks are."""
        features, n = self.features, self.nblocks
        first, second = factor_shapes(inputs, features, n)
        more = n * second[1] - features
        assert not (self.blocked and more), "padded in blocks"
        kernel_1 = self.param("kernel_1", logical(nn.initializers.normal((n / inputs) ** 0.5), (None,) * 3), first)
        kernel_2 = self.param("kernel_2", logical(_second_of(self.kernel_init, inputs, features), (None,) * 3), second)
        bias = self.make_bias()
        return Factors(kernel_1, kernel_2, None if bias is None else jnp.pad(bias, (0, more)))


def _second_of(kernel_init: Init, inputs: int, features: int) -> Init:
    """Column (s l) of the dense draw becomes row s of block l: an output keeps its own column's distribution."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        n, s, r = shape
        rows = rows_of(kernel_init, inputs)(key, (r, features), dtype)
        return jnp.transpose(jnp.reshape(jnp.pad(rows, [(0, 0), (0, n * s - features)]), (r, s, n)))

    return init


@dataclasses.dataclass(frozen=True)
class Monarch(Checked, LinearSpec):
    """A Monarch matrix in place of a dense one.

    Attributes:
      nblocks: blocks of each factor; divides min(in, out) / nblocks.
      implementation: kernel that computes the product, a name in ``kernels.monarch.IMPLEMENTATIONS``; None picks.
        Parameters do not depend on it.
    """

    nblocks: Annotated[int, Range(2, 2**10, hint="; one is 'dense'")] = 4
    implementation: str | None = None

    def __call__(self, features: int, **kwargs: Any) -> MonarchLinear:
        return MonarchLinear(features, nblocks=self.nblocks, implementation=self.implementation, **kwargs)

    def to_dense(self, params: Params) -> tuple[jax.Array, jax.Array | None]:
        """As of every spec; differentiable.

        The parameters of a padded map have forgotten its size: there the kernel has a row for each padded input and,
        where there is no bias, a column for each padded output. Its upper left ``[in, out]`` is the map.
        """
        kernel, bias = to_dense(params["kernel_1"], params["kernel_2"]), params.get("bias")
        return kernel if bias is None else kernel[:, : bias.shape[0]], bias

    def from_dense(self, kernel: Array, bias: jax.Array | None) -> Params:
        """The nearest in the Frobenius norm (``projection.project``), on the host; the bias stays."""
        kernel_1, kernel_2, _ = project(kernel, self.nblocks)
        params = {"kernel_1": jnp.asarray(kernel_1), "kernel_2": jnp.asarray(kernel_2)}
        return params if bias is None else {**params, "bias": bias}


@dataclasses.dataclass(frozen=True)
class _Ordered(Monarch):
    """A Monarch map between blocks: an affair of the layers on both sides, not of the user's."""

    input_parts: int = 1
    blocked_output: bool = False

    def __call__(self, features: int, **kwargs: Any) -> MonarchLinear:
        return super().__call__(features, input_parts=self.input_parts, blocked=self.blocked_output, **kwargs)


def blocked(spec: LinearSpec, features: int) -> tuple[LinearSpec, int]:
    """A spec of the same map that leaves its outputs in the order it likes best: of n interleaved blocks.

    What ought to come at ``a n + j`` comes at ``j features/n + a``, which saves a Monarch map the permutation of its
    output; n is 1 for other maps, and where a block would be padded.
    """
    if not isinstance(spec, Monarch) or features % spec.nblocks:
        return spec, 1
    return _Ordered(spec.nblocks, spec.implementation, blocked_output=True), spec.nblocks


def from_blocks(spec: LinearSpec, n: int, inputs: int) -> LinearSpec | None:
    """A spec of the same map for ``inputs`` in the order of n blocks (see :func:`blocked`), or None.

    The reordering is that of a kernel, where the blocks of the input fall into n parts.
    """
    if n == 1:
        return spec
    if not isinstance(spec, Monarch) or inputs % (spec.nblocks * n):
        return None
    return _Ordered(spec.nblocks, spec.implementation, input_parts=n)


def pair(spec: LinearSpec, hidden: int) -> tuple[LinearSpec, LinearSpec]:
    """Specs of the maps into and out of ``hidden`` units, whose order between the two is theirs to choose."""
    first, n = blocked(spec, hidden)
    second = from_blocks(spec, n, hidden)
    return (spec, spec) if second is None else (first, second)


def in_one(first: nn.Module, second: nn.Module, inputs: int) -> bool:
    """Whether ``monarch_mlp`` computes two maps at once, from ``inputs`` into a hidden layer and out of it."""
    if not isinstance(first, MonarchLinear) or not isinstance(second, MonarchLinear):
        return False
    free = first.implementation is None and second.input_parts > 1
    return free and inputs % first.nblocks == 0 and second.features % second.nblocks == 0
