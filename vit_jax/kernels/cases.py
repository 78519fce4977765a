"""What ``vit_jax bench kernels`` can run, by name."""

from __future__ import annotations

from collections.abc import Callable

from vit_jax.kernels.case import Maker
from vit_jax.kernels.monarch.case import Monarch
from vit_jax.kernels.sparse24.case import Sparse24

CASES: dict[str, Callable[..., Maker]] = {"monarch": Monarch, "sparse24": Sparse24}
