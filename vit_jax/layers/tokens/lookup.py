"""Many tokens that are looked up and few that are computed with (LookupViT, Koner et al. 2024, arXiv:2407.12753)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import Checked, Pixels, Range
from vit_jax.layers.attention import attention_weights, join_heads, split_heads
from vit_jax.layers.block import Block
from vit_jax.layers.hooks import Place
from vit_jax.layers.linear import Dense, DType, LinearSpec, xavier_uniform_parts
from vit_jax.layers.norm import LayerNorm
from vit_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Lookup(Checked):
    """Two streams: all tokens X of the grid, which cost little, and compressed ones Z, to which the head belongs.

    Z begins as X, positions and all, resized bilinearly to a smaller grid, behind class tokens and registers. A block
    reads ``Z + A V(X)`` by cross-attention A, is an ordinary block on Z, writes ``X + A^T V'(Z)`` with the very same
    weights transposed, and ends with a narrow MLP on X. X is for the blocks after it, so the last one has no use for
    it and leaves it as it is.

    The parameters are the same for every grid, and not those of a ViT without: it is to be trained so. No code has been
    published: norms, what of X is normalised, and that A is not normalised again over Z are our reading.

    Attributes:
      grid: rows and columns of Z.
      narrow: q; the MLP on X has D / q hidden units.
      levels: other grids, one of which the objective ``drawn`` trains at each step, so that one model has several
        costs; ``grid`` counts otherwise.
    """

    grid: Pixels = 5
    narrow: Annotated[int, Range(1, 64)] = 2
    levels: tuple[Pixels, ...] = ()

    def __call__(self, place: Place, *, name: str) -> None:
        """Nothing is left out between attention and MLP."""

    def forms(self) -> dict[str, Lookup]:
        """One for each grid, the first one's first; empty where that is the only one."""
        grids = (self.grid, *self.levels) if self.levels else ()
        return {f"grid_{grid}": dataclasses.replace(self, grid=grid, levels=()) for grid in grids}

    def streams(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """``[B, P + h * w, D]``, the grid's tokens last -> Z and X, ``[B, P + grid * grid + h * w, D]``.

        Raises:
          UserError: a grid has more rows or columns than that of the image.
        """
        if (most := max(self.grid, *self.levels, 0)) > min(grid):
            raise UserError(
                f"lookup({most}) compresses to {most}x{most} tokens, and there are {grid[0]}x{grid[1]}; give at most "
                f"{min(grid)}."
            )
        first = x.shape[1] - grid[0] * grid[1]
        table = x[:, first:].reshape(x.shape[0], *grid, x.shape[2]).astype(jnp.float32)
        few = jax.image.resize(table, (x.shape[0], self.grid, self.grid, x.shape[2]), "bilinear")
        few = few.reshape(x.shape[0], -1, x.shape[2]).astype(x.dtype)
        return jnp.concatenate([x[:, :first], few, x[:, first:]], axis=1)

    def blocks(self, block: Callable[..., nn.Module], depth: int, prefix: int, width: int) -> tuple[Any, ...]:
        """Of a model: ``block`` makes a :class:`LookupBlock` but for these fields."""
        made = functools.partial(block, compressed=prefix + self.grid**2, narrow=max(1, width // self.narrow))
        return (*(made for _ in range(depth - 1)), functools.partial(made, last=True))


class Mixed(nn.Module):
    """What both ways between the streams have in common.

    Attributes:
      heads: number of attention heads.
      qkv_linear: linear map of the projections to queries, keys and values.
      out_linear: linear map of the output projection.
      dtype: compute type; parameters are float32.
    """

    heads: int
    qkv_linear: LinearSpec = Dense()
    out_linear: LinearSpec = Dense()
    dtype: DType = "float32"

    def split(self, x: jax.Array, name: str) -> list[jax.Array]:
        """For each letter of ``name`` a projection ``[B, N, K, E]``."""
        fields: dict[str, Any] = {"axes": ("embed", "heads"), "dtype": self.dtype, "name": name}
        fields["kernel_init"] = xavier_uniform_parts(len(name))
        return split_heads(self.qkv_linear(x.shape[-1] * len(name), **fields)(x), self.heads, len(name))

    def mix(self, weights: jax.Array, v: jax.Array, axes: str) -> jax.Array:
        """``weights`` float32 of ``axes`` times ``v [B, n, K, E]``, and the output projection ``[B, m, D]``."""
        y = jnp.einsum(f"{axes},bnke->bmke", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        y = join_heads(y.astype(v.dtype))
        return self.out_linear(y.shape[-1], name="out", axes=("heads", "embed"), dtype=self.dtype)(y)


class Read(Mixed):
    """Cross-attention that hands over its probabilities: in "intermediates" they are called ``attention``."""

    @nn.compact
    def __call__(self, z: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``[B, M, D]``, ``[B, N, D]`` -> ``[B, M, D]`` and the probabilities A, float32 ``[B, K, M, N]``."""
        (q,), (k, v) = self.split(z, "q"), self.split(x, "kv")
        weights = attention_weights(q, k)
        self.sow("intermediates", "attention", weights)
        return self.mix(weights, v, "bkmn"), weights


class Write(Mixed):
    """The way back of a :class:`Read`."""

    @nn.compact
    def __call__(self, weights: jax.Array, z: jax.Array) -> jax.Array:
        """A float32 ``[B, K, M, N]``, ``[B, M, D]`` -> ``A^T V(z)`` projected, ``[B, N, D]``."""
        (v,) = self.split(z, "v")
        return self.mix(weights, v, "bknm")


class LookupBlock(Block):
    """A block of both streams in one array, see :class:`Lookup`.

    Attributes:
      compressed: M, how many of the first tokens are Z.
      narrow: hidden units of the MLP on the others.
      last: only Z comes out.
    """

    compressed: int = 1
    narrow: int = 1
    last: bool = False

    @nn.compact
    def __call__(
        self, x: Any, *, key: jax.Array | None = None, drop_path: float | jax.Array | None = None, **options: Any
    ) -> Any:
        """``[B, M + N, D] -> [B, M + N, D]``, of the last block ``[B, M, D]``; ``options`` as of :class:`Block`."""
        keys = [None] * 5 if key is None else list(jax.random.split(key, 5))
        maps: dict[str, Any] = {"heads": self.heads, "qkv_linear": self.qkv_linear, "out_linear": self.out_linear}
        maps["dtype"] = self.dtype
        norm = functools.partial(LayerNorm, self.dtype, self.norm_epsilon)
        z, x = x[:, : self.compressed], x[:, self.compressed :]
        weights: list[jax.Array] = []

        def read(z: jax.Array, _: Any) -> jax.Array:
            y, found = Read(**maps, name="lookup_read")(z, norm(name="norm_lookup")(x))
            weights.append(found)
            return y

        z = self.branch(z, "lookup_read", read, keys[0], drop_path)
        z = super().__call__(z, key=keys[1], drop_path=drop_path, **options)
        if self.last:
            return z
        y = Write(**maps, name="lookup_write")(weights[0], norm(name="norm_lookup_write")(z))
        x = self.add(x, "lookup_write", y, keys[2:4], drop_path)
        narrow = functools.partial(self.mlp, name="lookup_mlp", hidden=self.narrow)
        x = self.branch(x, "lookup_mlp", narrow, keys[4], drop_path)
        return jnp.concatenate([z, x], axis=1)
