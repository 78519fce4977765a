"""Token merging (Bolya et al. 2023, arXiv:2210.09461): the r most similar pairs of tokens become one."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from vit_jax.layers.hooks import Attended, Place, Tokens


@dataclasses.dataclass(frozen=True)
class Merge:
    """Bipartite soft matching of keys; the first token (cls) is never merged.

    Attributes:
      r: tokens that vanish in each block.
      until: the first block that merges no more; None merges in all.
    """

    r: int
    until: int | None = None

    def __call__(self, place: Place, *, name: str):
        active = self.until is None or place.block < self.until
        return functools.partial(merge, self.r if active else 0)


def merge(r: int, tokens: Tokens, attended: Attended) -> Tokens:
    """``[B, N, D]`` -> ``[B, N - r, D]``: averages weighted by how many tokens each stands for."""
    x, size, _ = tokens
    size = jnp.ones(x.shape[:2], jnp.float32) if size is None else size
    if not r:
        return Tokens(x, size, jnp.log(size))
    keys = jnp.mean(attended.keys.astype(jnp.float32), axis=2)
    keys /= jnp.linalg.norm(keys, axis=-1, keepdims=True)
    a, b = keys[:, ::2], keys[:, 1::2]
    scores = jnp.einsum("bnd,bmd->bnm", a, b).at[:, 0].set(-jnp.inf)
    best, target = scores.max(-1), scores.argmax(-1)
    order = jnp.argsort(-best, axis=-1)
    gone, kept = order[:, :r], jnp.sort(order[:, r:], axis=-1)  # in the order of the tokens
    take = lambda y, i: jnp.take_along_axis(y, i.reshape(*i.shape, *[1] * (y.ndim - 2)), axis=1)  # noqa: E731
    to = take(target, gone)
    weight = jax.nn.one_hot(to, b.shape[1], dtype=jnp.float32)  # [B, r, M]
    size_a, size_b = size[:, ::2], size[:, 1::2]
    total = size_b + jnp.einsum("brm,br->bm", weight, take(size_a, gone))
    mass = x.astype(jnp.float32) * size[..., None]
    moved = jnp.einsum("brm,brd->bmd", weight, take(mass[:, ::2], gone))
    merged = ((mass[:, 1::2] + moved) / total[..., None]).astype(x.dtype)
    size = jnp.concatenate([take(size_a, kept), total], 1)
    return Tokens(jnp.concatenate([take(x[:, ::2], kept), merged], 1), size, jnp.log(size))
