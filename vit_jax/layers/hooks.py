"""What a tower may be given to do inside its blocks: frozen values, each called with a name where it stands.

A value makes a Linen module, or returns a function where there are no parameters. All are None by default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from vit_jax.layers.linear import DType, LinearSpec
from vit_jax.layers.mlp import Activation
from vit_jax.types import Array


class Tokens(NamedTuple):
    """Tokens of which some stand for several.

    Attributes:
      x: ``[B, N, D]``.
      size: float32 ``[B, N]``, how many of the first block's tokens each stands for; None: one.
    """

    x: jax.Array
    size: jax.Array | None = None


class Attended(NamedTuple):
    """What self-attention has computed.

    Attributes:
      keys: ``[B, N, K, E]``.
      weights: probabilities float32 ``[B, K, N, N]``; those of a cls token are ``weights[:, :, 0]``.
    """

    keys: jax.Array
    weights: jax.Array


@runtime_checkable
class Adapter(Protocol):
    """What the output of a residual branch goes through before it is added."""

    def __call__(self, *, name: str) -> Callable[[jax.Array], jax.Array]:
        """Makes ``[B, N, D] -> [B, N, D]``."""


@runtime_checkable
class MLPSpec(Protocol):
    """What stands in place of the MLP, a gated one for example; :class:`vit_jax.layers.mlp.MLP` is one."""

    def __call__(
        self, hidden: int, *, linear: LinearSpec, activation: Activation, dropout: float, dtype: DType, name: str
    ) -> Callable[..., jax.Array]:
        """Makes ``(x [B, N, D], key=None) -> [B, N, D]``."""


@runtime_checkable
class Rotary(Protocol):
    """Positions as a function of queries and keys."""

    def __call__(self, *, name: str) -> Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, jax.Array]]:
        """Makes ``(q, k [B, N, K, E], coordinates [P, A] of the last P tokens) -> q, k``."""

    def coordinates(self, height: int, width: int) -> Array:
        """Of the tokens of a grid, row by row, float32 ``[height * width, A]``."""


@runtime_checkable
class LogitBias(Protocol):
    """A term of attention's logits, relative positions for example."""

    def __call__(self, *, name: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """Makes ``(q [B, N, K, E], k [B, M, K, E]) -> float32``, broadcastable to ``[B, K, N, M]``."""


@runtime_checkable
class Reducer(Protocol):
    """What leaves tokens out or merges them, between the attention and the MLP of a block."""

    def __call__(self, block: int, *, name: str) -> Callable[[Tokens, Attended], Tokens]:
        """Makes ``(tokens, attended) -> fewer tokens`` for the block of this number; sizes weigh in later attention."""
