"""Block-sparse linear maps: every block of outputs reads a few blocks of the input, by a fixed mask or by magnitude.

* ``"butterfly"`` (Pixelated Butterfly, Chen et al. 2021, arXiv:2112.00029): local and strided blocks, and with ``rank``
  a low-rank map added, which is the global part. The published layer weighs the two by a gate, here they are added.
* ``"random"``: blocks drawn from a seed, for comparison.
* ``"magnitude"``: the largest blocks of a dense kernel, the rest zero for good: a dense model, pruned and trained on.

What a checkpoint holds under ``kernel_butterfly_<n>`` or ``kernel_random_<n>_<seed>`` are the blocks alone, n being the
blocks of the input. Their places follow from the name and the shape (:mod:`vit_jax.kernels.block_sparse.patterns`).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Annotated, Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.checks import Checked, Range, Seed, Size
from vit_jax.kernels.block_sparse import block_sparse, patterns, to_dense
from vit_jax.kernels.block_sparse.magnitude import blocks_of, kept, largest, prune
from vit_jax.layers.linear.base import Init, LinearLayer, LinearSpec, logical, matmul
from vit_jax.layers.linear.low_rank import check_rank, rows_of
from vit_jax.layers.linear.projection import truncate
from vit_jax.types import Array, Params, UserError

PatternName = Literal["butterfly", "random", "magnitude"]
LEAF = re.compile(r"kernel_(?:butterfly_(\d+)|random_(\d+)_(\d+))")
ROUNDS = 4
"""How often ``from_dense`` goes back and forth between the blocks and the low-rank part."""


@dataclasses.dataclass(frozen=True)
class BlockSparse(Checked, LinearSpec):
    """A map with ``density * in * out`` weights in square blocks, the same number for every output.

    Attributes:
      density: share of the weights that is kept, in (0, 1]; rounded to whole blocks of the input, at least one.
      pattern: which blocks. "magnitude" is not for optimizers that mix weights, as Shampoo and Muon do, nor for kernels
        that start as zeros: what is zero stays zero.
      block: rows and columns of a block; divides the sizes of the map. TPUs want a multiple of 128.
      rank: rank of a low-rank map added to the blocks; 0 for none.
      seed: random seed of the pattern "random".
      implementation: kernel that computes the product, a name in ``kernels.block_sparse.IMPLEMENTATIONS``; None picks.
        Parameters do not depend on it.
    """

    density: Annotated[float, Range(0, 1, "(]", ", 0.25 for instance")] = 0.25
    pattern: PatternName = "butterfly"
    block: Size = 32
    rank: Annotated[int, Range(0, 2**18)] = 0
    seed: Seed = 0
    implementation: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern not in get_args(PatternName):
            raise UserError(f"pattern={self.pattern!r} is not allowed; give one of {', '.join(get_args(PatternName))}.")
        if self.pattern == "magnitude" and self.rank:
            raise UserError(f"rank={self.rank} goes with fixed patterns only; use 'butterfly', or rank=0.")
        if self.pattern != "random" and self.seed:
            raise UserError(f"seed={self.seed} means nothing to pattern={self.pattern!r}; leave it out.")

    def __call__(self, features: int, **kwargs: Any) -> BlockSparseLinear:
        return BlockSparseLinear(features, spec=self, **kwargs)

    def grid(self, inputs: int, features: int) -> tuple[int, int, int]:
        """Blocks of the input, of the output, and how many of the former each of the latter reads.

        Raises:
          UserError: the block does not divide both sizes.
        """
        if inputs % self.block or features % self.block:
            both = np.gcd(inputs, features)
            fits = ", ".join(str(b) for b in range(1, both + 1) if both % b == 0 and b >= min(both, 8))
            raise UserError(
                f"block={self.block} does not divide the map {inputs} -> {features}; blocks that would fit are {fits}."
            )
        in_blocks = inputs // self.block
        return in_blocks, features // self.block, patterns.count(self.density, in_blocks)

    def leaf(self, in_blocks: int) -> str:
        """Name of the parameter that holds the blocks."""
        names = {"butterfly": f"kernel_butterfly_{in_blocks}", "random": f"kernel_random_{in_blocks}_{self.seed}"}
        return names.get(self.pattern, "kernel")

    def to_dense(self, params: Params) -> tuple[jax.Array, jax.Array | None]:
        """What the product sees; differentiable."""
        bias = params.get("bias")
        if self.pattern == "magnitude":
            kernel = jnp.asarray(params["kernel"])
            index = largest(kernel, self.block, self.grid(*kernel.shape)[2])
            return to_dense(kept(kernel, index), index, kernel.shape[0]), bias
        leaf = next(filter(LEAF.fullmatch, params), "none")
        if leaf == "none" or leaf != self.leaf(_parse(leaf)[0]):
            raise UserError(f"the parameters {', '.join(params)} are not of pattern={self.pattern!r}; give its own.")
        blocks = jnp.asarray(params[leaf])
        kernel = to_dense(blocks, index_of(leaf, blocks.shape), _parse(leaf)[0] * blocks.shape[1])
        if "kernel_1" in params:
            kernel += jnp.matmul(params["kernel_1"], params["kernel_2"], precision=jax.lax.Precision.HIGHEST)
        return kernel, bias

    def from_dense(self, kernel: Array, bias: jax.Array | None) -> Params:
        """The kept blocks, copied: the nearest of the mask in the Frobenius norm; of "magnitude" also the best mask.

        With a low-rank part first the truncated SVD of what the mask leaves out, then in turn the blocks of what that
        part leaves and the SVD of what the blocks leave, each the nearest given the other; on the host.
        """
        matrix = np.asarray(kernel)
        in_blocks, _, per = self.grid(*matrix.shape)
        extra: Params = {} if bias is None else {"bias": bias}
        if self.pattern == "magnitude":
            return {"kernel": prune(jnp.asarray(matrix), self.block, per), **extra}
        leaf = self.leaf(in_blocks)
        index = index_of(leaf, (per, self.block, matrix.shape[1]))
        blocks = np.asarray(kept(jnp.asarray(matrix), index))
        if self.rank:
            check_rank(self.rank, *matrix.shape)
            wide = matrix.astype(np.float64)
            outside = np.asarray(to_dense(jnp.ones_like(blocks), index, matrix.shape[0])) == 0
            low = np.zeros_like(wide)
            for _ in range(ROUNDS):
                left, right, _ = truncate(np.where(outside, wide, low), self.rank)
                low = left.astype(np.float64) @ right
            blocks = np.asarray(kept(jnp.asarray(wide - low, matrix.dtype), index))
            extra = {"kernel_1": jnp.asarray(left), "kernel_2": jnp.asarray(right), **extra}
        return {leaf: jnp.asarray(blocks), **extra}


def _parse(leaf: str) -> tuple[int, int | None]:
    """Blocks of the input, 0 for what is no leaf of a pattern; seed or None."""
    found = LEAF.fullmatch(leaf)
    if found is None:
        return 0, None
    return int(found[1] or found[2]), None if found[3] is None else int(found[3])


def index_of(leaf: str, shape: tuple[int, ...]) -> np.ndarray:
    """The index ``[out_blocks, per]`` of a parameter ``[per, b, out]`` of this name."""
    (in_blocks, seed), (per, block, out) = _parse(leaf), shape
    if seed is None:
        return patterns.butterfly(in_blocks, out // block, per)
    return patterns.random(in_blocks, out // block, per, seed)


class BlockSparseLinear(LinearLayer):
    """``[..., in] -> [..., features]``; parameters as :class:`BlockSparse` says.

    Fixed pattern: ``kernel_<pattern> [per, block, features]`` and with a rank ``kernel_1 [in, rank]`` and ``kernel_2
    [rank, features]``; "magnitude": ``kernel [in, features]``. An output starts with the variance that ``kernel_init``
    gives it with all inputs, half of it from the low-rank part where there is one.

    Attributes:
      spec: the map's pattern and sizes.
    """

    spec: BlockSparse = BlockSparse()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        spec, inputs, x = self.spec, x.shape[-1], x.astype(self.dtype)
        in_blocks, _, per = spec.grid(inputs, self.features)
        name, shape = spec.leaf(in_blocks), (per, spec.block, self.features)
        index: Array
        if spec.pattern == "magnitude":
            init = functools.partial(_pruned, self.kernel_init, spec.block, per)
            kernel = self.param(name, logical(init, self.axes), (inputs, self.features))
            index = largest(kernel, spec.block, per)
            blocks = kept(kernel, index)
        else:
            index = known = index_of(name, shape)
            init = functools.partial(_drawn, self.kernel_init, inputs, known, 0.5 if spec.rank else 1.0)
            blocks = self.param(name, logical(init, (None,) * 3), shape)
        y = block_sparse(x, blocks, index, self.make_bias(), implementation=spec.implementation)
        return y + self._low_rank(x) if spec.rank else y

    def _low_rank(self, x: jax.Array) -> jax.Array:
        inputs, rank, features = x.shape[-1], self.spec.rank, self.features
        check_rank(rank, inputs, features)

        def half(*args: Any) -> jax.Array:
            return rows_of(self.kernel_init, inputs)(*args) * 0.5**0.5

        first = logical(nn.initializers.normal(inputs**-0.5), (self.axes[0], None))
        kernel_1 = self.param("kernel_1", first, (inputs, rank))
        kernel_2 = self.param("kernel_2", logical(half, (None, self.axes[1])), (rank, features))
        return matmul(matmul(x, kernel_1), kernel_2)


def _drawn(
    init: Init, inputs: int, index: np.ndarray, share: float, key: Any, shape: Any, dtype: Any = jnp.float32
) -> Any:
    """The blocks of the dense draw, scaled up for the inputs that are left out; ``share`` of the variance."""
    per, block, features = shape
    return kept(init(key, (inputs, features), dtype), index) * (share * inputs / (per * block)) ** 0.5


def _pruned(init: Init, block: int, per: int, key: Any, shape: Any, dtype: Any = jnp.float32) -> Any:
    """The dense draw, pruned; every block of outputs keeps its Frobenius norm."""
    dense = init(key, shape, dtype)
    pruned = prune(dense, block, per)
    before, after = (jnp.sum(jnp.square(blocks_of(k, block)), (0, 1, 3)) for k in (dense, pruned))
    scale = jnp.sqrt(before / jnp.where(after > 0, after, 1.0))
    return pruned * jnp.repeat(scale, block)[None]
