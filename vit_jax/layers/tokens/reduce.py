"""Fewer tokens in a ViT, by which it is faster: values for its field ``reduce``, of which ``lookup`` has parameters.

Tokens move by a product with a matrix of mostly zeros and ones, which costs a few percent of a block, and which every
processor does well, backwards too; places are found by counting how many are ahead, without a sort. In front of the
tokens of the grid class tokens and registers stay as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from vit_jax import config
from vit_jax.checks import Checked, Range
from vit_jax.layers.hooks import Attended, Place, Reducer, Tokens
from vit_jax.layers.norm import unit
from vit_jax.layers.tokens.lookup import Lookup
from vit_jax.types import UserError

Kept = Annotated[float, Range(0, 1, "(]")]


@dataclasses.dataclass(frozen=True)
class Merge(Checked):
    """Token merging (ToMe, Bolya et al. 2023, arXiv:2210.09461): in every block the most similar pairs become one.

    Between attention and MLP tokens at even places (A) and at odd ones (B) are compared: cosines of their keys, which
    are averaged over heads. Each of A is drawn to its nearest of B; the r nearest pairs become their mean, weighted by
    how many tokens each stands for. What is left of A comes first, in its order, then B. The same weights pool.

    Attributes:
      r: tokens that vanish in each block; where there are fewer pairs, all of them do.
      inflect: r grows in even steps from ``r * (1 - inflect)``, rounded down, in the first block to as much above r in
        the last, as the authors' ``parse_r`` has it.
      proportional: the logarithm of how many tokens one stands for is added to the logits of its key (section 3.2, eq.
        1), so that equal tokens may be merged without a change. Weights of masked autoencoders do without.
    """

    r: Annotated[int, Range(0, 2**16)]
    inflect: Annotated[float, Range(-1, 1)] = 0.0
    proportional: bool = True

    def __call__(self, place: Place, *, name: str) -> Callable[[Tokens, Attended], Tokens] | None:
        low = int(self.r * (1 - self.inflect))
        step = 2 * (self.r - low) / max(place.depth - 1, 1)
        r = int(low + step * place.block)
        return functools.partial(merge, r=r, prefix=place.prefix, proportional=self.proportional) if r else None


@dataclasses.dataclass(frozen=True)
class Attentive(Checked):
    """EViT (Liang et al. 2022, arXiv:2202.07800): in some blocks the tokens stay that the class token attends to most.

    They stay in the order of that attention, averaged over heads; the others become one at the end, their sum weighted
    by it (section 3.2), which at the next such block competes like any other.

    Attributes:
      keep: share of the tokens that stay, rounded up.
      blocks: numbers of these blocks, from 0.
      fuse: whether the others become one; they are left out otherwise.
      levels: other values of ``keep`` that are trained too: the objective ``drawn`` draws one of all at each step,
        ``annealed`` begins with the last of these and comes to ``keep``, which counts otherwise.
    """

    keep: Kept = 0.7
    blocks: tuple[Annotated[int, Range(0, 255)], ...] = (3, 6, 9)
    fuse: bool = True
    levels: tuple[Kept, ...] = ()

    def __call__(self, place: Place, *, name: str) -> Callable[[Tokens, Attended], Tokens] | None:
        if not place.cls:
            raise UserError(
                "attentive keeps what the class token attends to, and this model has none; merge(13) needs none."
            )
        if beyond := [i for i in self.blocks if i >= place.depth]:
            raise UserError(f"attentive names block {beyond[0]}, and the last of {place.depth} is {place.depth - 1}.")
        if self.keep == 1 or place.block not in self.blocks:
            return None
        return functools.partial(attentive, keep=self.keep, prefix=place.prefix, fuse=self.fuse)

    def forms(self) -> dict[str, Attentive]:
        """One for each share, ``keep`` first; empty where that is the only one."""
        shares = (self.keep, *self.levels) if self.levels else ()
        return {f"keep_{keep:g}": dataclasses.replace(self, keep=keep, levels=()) for keep in shares}


@dataclasses.dataclass(frozen=True)
class Random(Checked):
    """As FLIP trains (Li et al. 2023, arXiv:2212.00794, section 3): a share of the patches, others at every step.

    They are drawn before the first block, in training alone.

    Attributes:
      keep: share of the patches, rounded down.
    """

    keep: Kept = 0.5

    def __call__(self, place: Place, *, name: str) -> None:
        """No block leaves out more."""

    def draw(self, x: jax.Array, prefix: int, key: jax.Array) -> jax.Array:
        """``[B, N, D]`` -> the ``prefix`` tokens and as many of the others as are kept, in their order.

        Raises:
          UserError: that is none of them.
        """
        n = x.shape[1] - prefix
        count = int(self.keep * n)
        if not count:
            least = math.ceil(1e3 / n) / 1e3
            raise UserError(f"random({self.keep:g}) keeps none of {n} patches; give at least {least}.")
        if count == n:
            return x
        kept = _rank(jax.random.uniform(key, (x.shape[0], n))) < count
        place = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, count)
        return jnp.concatenate([x[:, :prefix], _mixed(_moves(place, count), x[:, prefix:])], axis=1)


REDUCERS = {"merge": Merge, "attentive": Attentive, "random": Random, "lookup": Lookup}
ReducerSpec = Annotated[Reducer, config.Choice(REDUCERS, Reducer)]
"""Type of a module's field that holds a :class:`~vit_jax.layers.hooks.Reducer`."""


def merge(tokens: Tokens, attended: Attended, *, r: int, prefix: int = 0, proportional: bool = True) -> Tokens:
    """``[B, N, D] -> [B, N - r, D]``, see :class:`Merge`; ``prefix`` tokens are never merged."""
    x = tokens.x
    r = min(r, (x.shape[1] - prefix) // 2)
    if not r:
        return tokens
    size = jnp.ones(x.shape[:2], jnp.float32) if tokens.size is None else tokens.size
    keys = unit(attended.summed())  # as long as their mean, once they are unit vectors
    first = prefix + prefix % 2  # the first even place behind the prefix
    other = prefix + 1 - prefix % 2
    a, b = (lambda y: y[:, first::2]), (lambda y: y[:, other::2])
    similar = jax.lax.dot_general(a(keys), b(keys), (((2,), (2,)), ((0,), (0,))))
    left = a(x).shape[1] - r
    gone = _rank(jnp.max(similar, axis=2)) < r
    place = jnp.where(gone, left + jnp.argmax(similar, axis=2), jnp.cumsum(~gone, axis=1) - 1)
    mass = _moves(place, left + b(x).shape[1]) * a(size)[:, None]
    behind = lambda y: jnp.pad(y, ((0, 0), (left, 0), *[(0, 0)] * (y.ndim - 2)))  # noqa: E731
    total = jnp.sum(mass, axis=2) + behind(b(size))
    shares = jax.lax.stop_gradient((mass / total[:, :, None], behind(b(size)) / total))
    y = _mixed(shares[0], a(x), jnp.float32) + shares[1][:, :, None] * behind(b(x).astype(jnp.float32))
    size = jnp.concatenate([size[:, :prefix], total], axis=1)
    y = jnp.concatenate([x[:, :prefix], y.astype(x.dtype)], axis=1)
    return Tokens(y, size, jnp.log(size) if proportional else None)


def attentive(tokens: Tokens, attended: Attended, *, keep: float, prefix: int = 1, fuse: bool = True) -> Tokens:
    """``[B, N, D]`` -> the prefix, ``ceil(keep * (N - prefix))`` tokens and the fused one, see :class:`Attentive`."""
    x = tokens.x
    count = math.ceil(keep * (x.shape[1] - prefix))
    if count == x.shape[1] - prefix:
        return tokens
    score = jnp.mean(attended.weights(1)[:, :, 0, prefix:], axis=1)
    rank = _rank(score)
    shares = _moves(rank, count)
    if fuse:
        shares = jnp.concatenate([shares, jnp.where(rank < count, 0.0, score)[:, None]], axis=1)
    return Tokens(jnp.concatenate([x[:, :prefix], _mixed(shares, x[:, prefix:])], axis=1))


def _rank(score: jax.Array) -> jax.Array:
    """How many of ``score [B, N]`` are larger than each, of equal ones those before it: int32 ``[B, N]``."""
    here, there = score[:, :, None], score[:, None, :]
    order = jnp.arange(score.shape[1])
    before = (order[None, :] < order[:, None])[None]
    return jnp.sum((there > here) | ((there == here) & before), axis=2, dtype=jnp.int32)


def _moves(place: jax.Array, count: int) -> jax.Array:
    """The float32 matrix ``[B, count, N]`` that takes each token to its ``place [B, N]``, if one of ``count``."""
    return (place[:, None, :] == jnp.arange(count)[None, :, None]).astype(jnp.float32)


def _mixed(shares: jax.Array, x: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """``shares [B, M, N] @ x [B, N, D]``: what goes where as a whole is copied bit for bit."""
    dims = (((2,), (1,)), ((0,), (0,)))
    y = jax.lax.dot_general(
        shares.astype(x.dtype), x, dims, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    return y.astype(dtype or x.dtype)
