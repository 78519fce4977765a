"""What ``vit_jax bench kernels`` can run, by name."""

from __future__ import annotations

from collections.abc import Callable

from vit_jax.kernels.block_diagonal.case import BlockDiagonal
from vit_jax.kernels.block_sparse.case import BlockSparse
from vit_jax.kernels.case import Maker
from vit_jax.kernels.monarch.case import Monarch
from vit_jax.kernels.sparse24.case import Sparse24
from vit_jax.kernels.topk_mlp.case import TopKMLP

CASES: dict[str, Callable[..., Maker]] = {
    "monarch": Monarch,
    "block_diagonal": BlockDiagonal,
    "block_sparse": BlockSparse,
    "sparse24": Sparse24,
    "topk_mlp": TopKMLP,
}
