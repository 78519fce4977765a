"""All pairs of two sets of embeddings, reduced: the two operations of contrastive losses, and their dense backend.

A backend is a frozen value with two methods on global arrays. ``reduce`` sums over all columns and rows of the matrix
``scale * a @ c.T + bias`` and never over anything else of it; ``hopfield_retrieve`` (Ramsauer et al. 2020,
arXiv:2008.02217) is attention with one head and without parameters. :class:`Dense` writes the matrix down and leaves
the gradient to automatic differentiation; :class:`Chunked` and :class:`Ring` see one block of it at a time
(:mod:`vit_jax.losses.blockwise`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from vit_jax.types import Array

NEVER = -1e30
"""Logit of a pair that does not count: finite, so that nothing turns into inf - inf."""


def accumulator(x: Array) -> jnp.dtype:
    """The type in which values of ``x`` are summed: float32, or float64 where they are that already."""
    return jnp.dtype("float64" if x.dtype == "float64" else "float32")


class PairReduction(NamedTuple):
    """How the logits of a row, or of a column, are reduced to one number.

    Attributes:
      reduce: ``(z, axis) -> number`` of the logits ``z`` along ``axis``.
      merge: ``(number, number) -> number``: from the numbers of two disjoint sets of logits, that of their union.
      derivative: ``(z, number) -> d number / d z``, elementwise; None for a reduction that is never differentiated.
      empty: the number of an empty set of logits.
    """

    reduce: Callable[[jax.Array, int], jax.Array]
    merge: Callable[[jax.Array, jax.Array], jax.Array]
    derivative: Callable[[jax.Array, jax.Array], jax.Array] | None
    empty: float


LOGSUMEXP = PairReduction(jax.nn.logsumexp, jnp.logaddexp, lambda z, total: jnp.exp(z - total), NEVER)
SOFTPLUS = PairReduction(
    lambda z, axis: jnp.sum(jax.nn.softplus(z), axis), jnp.add, lambda z, _: jax.nn.sigmoid(z), 0.0
)
MAX = PairReduction(jnp.max, jnp.maximum, None, NEVER)


class Reduction(NamedTuple):
    """Which numbers of the matrix of pairs are wanted.

    Attributes:
      rule: how the logits of a row become one number.
      diagonal: whether a row counts the logit with its own partner.
      columns: whether the numbers of the columns are wanted too.
    """

    rule: PairReduction
    diagonal: bool = True
    columns: bool = False


class Side(NamedTuple):
    """Embeddings ``[n, E]``, their places int32 ``[n]`` in the batch and bool ``[n]``, whether they count."""

    x: jax.Array
    place: jax.Array
    valid: jax.Array

    @classmethod
    def of(cls, x: jax.Array, mask: Array, start: Array | int = 0) -> Side:
        """Consecutive embeddings, the first at ``start``."""
        return cls(x, jnp.arange(x.shape[0], dtype=jnp.int32) + jnp.asarray(start, jnp.int32), jnp.asarray(mask))


def logits(what: Reduction, a: Side, c: Side, scale: Array | float, bias: Array | None) -> jax.Array:
    """``scale * a.x @ c.x.T + bias``, :data:`NEVER` where a pair does not count: ``[n, m]``."""
    z = scale * _products(a.x, c.x)
    z = z if bias is None else z + bias
    counts = a.valid[:, None] & c.valid[None, :]
    if not what.diagonal:
        counts &= a.place[:, None] != c.place[None, :]
    return jnp.where(counts, z, NEVER)


def _products(a: jax.Array, c: jax.Array) -> jax.Array:
    return jax.lax.dot_general(a, c, (((1,), (1,)), ((), ())))


@runtime_checkable
class PairwiseBackend(Protocol):
    """How all pairs are gone through: densely, in chunks, or around a ring of devices.

    Rows where ``mask`` is False must hold finite embeddings, such as zeros.
    """

    def reduce(
        self, what: Reduction, a: jax.Array, c: jax.Array, scale: Array, bias: Array | None, mask: Array
    ) -> tuple[jax.Array, ...]:
        """The numbers of the rows, and those of the columns if wanted, of the matrix of pairs.

        Args:
          what: rule, and which pairs count.
          a: embeddings of the rows, float ``[B, E]``.
          c: embeddings of the columns, float ``[B, E]``.
          scale: float ``[]``.
          bias: float ``[]``, or None for no bias.
          mask: bool ``[B]``, which rows count, and which columns.

        Returns:
          float ``[B]`` each, :attr:`PairReduction.empty` or close to it where no pair counts.
        """
        ...

    def hopfield_retrieve(self, beta: float, query: jax.Array, memory: jax.Array, mask: Array) -> jax.Array:
        """``softmax(beta * query @ memory.T) @ memory`` over the memories that ``mask`` keeps, float ``[B, E]``."""
        ...


@dataclasses.dataclass(frozen=True)
class Dense:
    """The whole matrix in memory, several times over: O(B^2). XLA splits its rows over the devices."""

    def reduce(
        self, what: Reduction, a: jax.Array, c: jax.Array, scale: Array, bias: Array | None, mask: Array
    ) -> tuple[jax.Array, ...]:
        z = logits(what, Side.of(a, mask), Side.of(c, mask), scale, bias)
        return tuple(what.rule.reduce(z, axis) for axis in ((1, 0) if what.columns else (1,)))

    def hopfield_retrieve(self, beta: float, query: jax.Array, memory: jax.Array, mask: Array) -> jax.Array:
        z = jnp.where(jnp.asarray(mask)[None, :], beta * _products(query, memory), NEVER)
        return jax.nn.softmax(z, axis=-1) @ memory
