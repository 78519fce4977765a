"""How the numbers of one tensor are laid out in two projects: moved but never computed with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

Arrays = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """``into(*theirs) -> ours`` and ``back(*ours) -> theirs``: tuples of arrays, moved but never computed with."""

    into: Callable[..., Arrays]
    back: Callable[..., Arrays]


def permute(*axes: int) -> Transform:
    """Their axes in the order ``axes`` are ours."""
    inverse = tuple(np.argsort(axes))
    return Transform(lambda x: (x.transpose(axes),), lambda x: (x.transpose(inverse),))


SAME = Transform(lambda x: (x,), lambda x: (x,))


LINEAR = permute(1, 0)
"""``torch.nn.Linear``'s weight ``[out, in]`` <-> ``[in, out]``."""
CONV = permute(2, 3, 1, 0)
"""``torch.nn.Conv2d``'s weight ``[out, in, h, w]`` <-> ``[h, w, in, out]``."""
FLAT_PATCHES = Transform(
    lambda x: (x.T.reshape(*2 * (math.isqrt(x.shape[1] // 3),), 3, -1),), lambda x: (x.reshape(-1, x.shape[-1]).T,)
)
"""``torch.nn.Linear``'s weight ``[out, h * w * 3]`` of square patches, rows first <-> ``[h, w, 3, out]``."""


CONV1X1 = Transform(lambda x: (x[:, :, 0, 0].T,), lambda x: (x.T[:, :, None, None],))
"""That of 1x1, ``[out, in, 1, 1]`` <-> ``[in, out]``."""


HALVES = Transform(lambda x: tuple(half.T for half in np.split(x, 2)), lambda *xs: (np.concatenate([x.T for x in xs]),))
"""Two torch weights ``[out, in]`` (or biases), one below the other <-> ``[in, out]`` each."""


LEADING = Transform(lambda x: (x[None],), lambda x: (x[0],))
"""``[N, D]`` <-> ``[1, N, D]``."""
TOKEN = Transform(lambda x: (x[None, None],), lambda x: (x[0, 0],))
"""``[D]`` <-> ``[1, 1, D]``."""


def reshape(theirs: Sequence[int], ours: Sequence[int]) -> Transform:
    """The same numbers in the same order; one entry of a shape may be -1."""
    return Transform(lambda x: (x.reshape(ours),), lambda x: (x.reshape(theirs),))


def zeros(count: int) -> Transform:
    """Nothing there <-> zeros here; no layout that is written is without them."""
    return Transform(lambda: (np.zeros(count, np.float32),), lambda x: ())


def fused_linear(heads: int, parts: int = 3) -> Transform:
    """One torch weight ``[parts K E, D]`` (or bias) with whole parts in sequence <-> ours, ordered (K, parts, E)."""

    def into(x: np.ndarray) -> Arrays:
        rest = x.shape[1:]
        return (x.reshape(parts, heads, -1, *rest).swapaxes(0, 1).reshape(-1, *rest).T,)

    def back(x: np.ndarray) -> Arrays:
        y = x.T
        rest = y.shape[1:]
        return (y.reshape(heads, parts, -1, *rest).swapaxes(0, 1).reshape(-1, *rest),)

    return Transform(into, back)


def hidden_and_fused(heads: int, width: int) -> Transform:
    """A torch weight ``[F + 3 D, D]`` (or bias) of an MLP, then queries, keys and values <-> ours, of either."""
    fused = fused_linear(heads)

    def into(x: np.ndarray) -> Arrays:
        hidden = len(x) - 3 * width
        return (x[:hidden].T, *fused.into(x[hidden:]))

    def back(hidden: np.ndarray, qkv: np.ndarray) -> Arrays:
        return (np.concatenate([hidden.T, *fused.back(qkv)]),)

    return Transform(into, back)


def split_linear(heads: int, parts: int = 3) -> Transform:
    """``parts`` torch weights ``[K E, D]`` (or biases) <-> ours, fused and ordered (K, parts, E)."""
    fused = fused_linear(heads, parts)

    def into(*xs: np.ndarray) -> Arrays:
        return fused.into(np.concatenate(xs))

    def back(x: np.ndarray) -> Arrays:
        return tuple(np.split(fused.back(x)[0], parts))

    return Transform(into, back)


def queries_and_memory(heads: int) -> Transform:
    """A torch weight ``[3 K E, D]`` (or bias) of queries, keys and values <-> ours, ``q`` and ``kv``."""
    memory = fused_linear(heads, 2)

    def into(x: np.ndarray) -> Arrays:
        third = len(x) // 3
        return (x[:third].T, *memory.into(x[third:]))

    def back(q: np.ndarray, kv: np.ndarray) -> Arrays:
        return (np.concatenate([q.T, *memory.back(kv)]),)

    return Transform(into, back)


def split_heads(heads: int, parts: int = 3) -> Transform:
    """``parts`` Flax kernels ``[D, K, E]`` (or biases ``[K, E]``) <-> ours ``[D, K parts E]``."""

    def into(*xs: np.ndarray) -> Arrays:
        x = np.stack(xs, axis=-2)
        return (x.reshape(*x.shape[:-3], -1),)

    def back(x: np.ndarray) -> Arrays:
        y = x.reshape(*x.shape[:-1], heads, parts, -1)
        return tuple(y[..., i, :] for i in range(parts))

    return Transform(into, back)


def merge_heads(heads: int) -> Transform:
    """A Flax kernel ``[K, E, D]`` <-> ours ``[K E, D]``."""
    return Transform(lambda x: (x.reshape(-1, x.shape[-1]),), lambda x: (x.reshape(heads, -1, x.shape[-1]),))


def stacked(transform: Transform, depth: int) -> Transform:
    """``transform`` of every layer, theirs stacked along a first axis: ours are layer 0's, then layer 1's, ..."""

    def into(*xs: np.ndarray) -> Arrays:
        if len(xs[0]) != depth:
            raise ValueError(f"{len(xs[0])} layers are stacked, expected {depth}")
        return tuple(y for i in range(depth) for y in transform.into(*(x[i] for x in xs)))

    def back(*ys: np.ndarray) -> Arrays:
        n = len(ys) // depth
        layers = [transform.back(*ys[i * n : (i + 1) * n]) for i in range(depth)]
        return tuple(np.stack(parts) for parts in zip(*layers, strict=True))

    return Transform(into, back)
