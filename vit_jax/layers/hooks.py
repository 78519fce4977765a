"""What a tower may be given to do inside its blocks: frozen values, each called with a name where it stands.

A value makes a Linen module, or returns a function where there are no parameters. All are None by default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from vit_jax.kernels.attention.rotation import Rotation
from vit_jax.layers.linear import DType, LinearSpec
from vit_jax.layers.mlp import Activation
from vit_jax.types import Array


class Tokens(NamedTuple):
    """Tokens of which some stand for several.

    Attributes:
      x: ``[B, N, D]``.
      size: float32 ``[B, N]``, how many of the first block's tokens each stands for, which pooling weighs; None: one.
      bias: float32 ``[B, N]``, added to the logits of each as a key of self-attention, a constant; None: nothing.
    """

    x: jax.Array
    size: jax.Array | None = None
    bias: jax.Array | None = None


class Attended(NamedTuple):
    """What self-attention was computed of: nothing that is not asked for is computed or written to memory.

    Attributes:
      keys: ``[B, N, K, E]``.
      summed: computes the sum of the keys over the heads, float32 ``[B, N, E]``, without a gradient.
      weights: computes the probabilities float32 ``[B, K, n, N]`` of the first n queries, of a cls token's with n = 1.
    """

    keys: jax.Array
    summed: Callable[[], jax.Array]
    weights: Callable[[int], jax.Array]


class Term(NamedTuple):
    """What attention is changed by; float32, broadcastable to ``[B, K, N, M]``.

    Attributes:
      bias: added to the logits.
      factor: the probabilities are multiplied with it; None: nothing.
    """

    bias: jax.Array
    factor: jax.Array | None = None


class Place(NamedTuple):
    """Where in a model a reducer stands.

    Attributes:
      block: number of the block, from 0.
      depth: of the model, in blocks.
      prefix: tokens before those of the grid, which stay where they are: class tokens, registers.
      cls: whether the first of them is a class token.
    """

    block: int
    depth: int
    prefix: int = 0
    cls: bool = False


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
class FixedRotary(Rotary, Protocol):
    """Those that turn all heads alike, without parameters: kernels know it."""

    def rotation(self, at: Array, tokens: int, size: int) -> Rotation:
        """Of heads of ``size`` channels, the last P of whose tokens are at ``[P, A]``."""


@runtime_checkable
class LogitBias(Protocol):
    """A term of attention's logits, relative positions for example."""

    def __call__(self, *, name: str) -> Callable[[jax.Array, jax.Array], jax.Array | Term]:
        """Makes ``(q [B, N, K, E], k [B, M, K, E]) -> float32``, broadcastable to ``[B, K, N, M]``.

        A :class:`Term` where more than a sum is asked for.
        """


@runtime_checkable
class Reducer(Protocol):
    """What leaves tokens out or merges them, between the attention and the MLP of a block."""

    def __call__(self, place: Place, *, name: str) -> Callable[[Tokens, Attended], Tokens] | None:
        """Makes ``(tokens, attended) -> fewer tokens`` for a block; None where it keeps all and computes no more."""
