"""The linear maps that a configuration can choose, by name: ``mlp_linear="monarch(nblocks=4)"``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated

from vit_jax import config
from vit_jax.layers.linear.base import Dense, LinearSpec
from vit_jax.layers.linear.block_diagonal import BlockDiagonal
from vit_jax.layers.linear.block_sparse import BlockSparse
from vit_jax.layers.linear.int8 import Int8
from vit_jax.layers.linear.low_rank import LowRank
from vit_jax.layers.linear.monarch import Monarch
from vit_jax.layers.linear.sparse24 import Packed24, Sparse24

LINEARS: dict[str, Callable[..., LinearSpec]] = {
    "dense": Dense,
    "monarch": Monarch,
    "block_diagonal": BlockDiagonal,
    "low_rank": LowRank,
    "sparse24": Sparse24,
    "packed24": Packed24,
    "block_sparse": BlockSparse,
    "int8": Int8,
}
Spec = Annotated[LinearSpec, config.Choice(LINEARS, LinearSpec)]
"""Type of a module's field that holds a :class:`~vit_jax.layers.linear.LinearSpec`."""

FIELDS = ("qkv_linear", "out_linear", "mlp_linear")
"""The fields of models for the maps of attention and of the MLPs across channels."""
TOKENS = "token_linear"
"""The field of models for the maps across tokens, whose sizes few structures divide: changed where it is named."""


def name_of(spec: LinearSpec) -> str:
    """As a user writes it: ``"monarch(4)"``, ``"sparse24(mask=frozen, bits=8)"``."""
    name = next((name for name, row in LINEARS.items() if row is type(spec)), None)
    if name is None:
        return repr(spec)
    values = [(f.name, getattr(spec, f.name), f.default) for f in dataclasses.fields(spec)]  # type: ignore[arg-type]
    shown = [(key, value) for key, value, default in values if value != default] or [v[:2] for v in values[:1]]
    texts = [f"{value}" if key == values[0][0] else f"{key}={value}" for key, value in shown]
    return f"{name}({', '.join(texts)})" if texts else name
