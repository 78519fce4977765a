"""Sizes of a Monarch product, checked once, and the reorderings of its parameters that keep activations in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.types import UserError


class Sizes(NamedTuple):
    """``kernel_1 [K, T*L, P]`` and ``kernel_2 [L, S, K*T]``, and in how many parts the input comes.

    Attributes:
      K: blocks of the first factor.
      P: inputs of each.
      T: outputs that each block of the first factor gives to each block of the second.
      L: blocks of the second factor.
      S: outputs of each.
      parts: natural input ``i = a * parts + j`` lies at ``j * (n / parts) + a``.
    """

    K: int
    P: int
    T: int
    L: int
    S: int
    parts: int

    @property
    def inputs(self) -> int:
        return self.K * self.P

    @property
    def outputs(self) -> int:
        return self.L * self.S

    @classmethod
    def of(cls, features: int, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, parts: int) -> Sizes:
        """The sizes of a product with ``x [..., features]``; arrays or shapes.

        Raises:
          UserError: the shapes do not fit together.
        """
        if len(kernel_1.shape) != 3 or len(kernel_2.shape) != 3:
            raise UserError(
                f"the factors of a Monarch product have shapes {kernel_1.shape} and {kernel_2.shape}; "
                "give kernel_1 [k, q, p] and kernel_2 [l, s, r]."
            )
        (K, q, P), (L, S, r) = kernel_1.shape, kernel_2.shape
        if features != K * P:
            raise UserError(
                f"x has {features} features, kernel_1 {kernel_1.shape} takes k * p = {K * P}; make them equal."
            )
        if L * r != K * q:
            raise UserError(
                f"kernel_1 {kernel_1.shape} gives k * q = {K * q} values, "
                f"kernel_2 {kernel_2.shape} takes l * r = {L * r}; make them equal."
            )
        if q % L:
            raise UserError(
                f"a block of kernel_1 has q = {q} outputs, which {L} blocks of kernel_2 cannot share; "
                "make q a multiple of l."
            )
        if parts < 1 or P % parts:
            raise UserError(
                f"input_parts={parts} does not divide the p = {P} inputs of a block; "
                "give the number of blocks that x was left in by the map before, or 1."
            )
        if bias is not None and bias.shape != (L * S,):
            raise UserError(f"bias has shape {bias.shape}, the product l * s = {L * S} outputs; give ({L * S},).")
        return cls(K, P, q // L, L, S, parts)


def first(sizes: Sizes, kernel_1: jax.Array) -> jax.Array:
    """``kernel_1 [K, (T L), P] -> [K, L, T, parts, P/parts]``: outputs in contiguous chunks, inputs as they come."""
    K, P, T, L, _, parts = sizes
    return jnp.transpose(jnp.reshape(kernel_1, (K, T, L, P // parts, parts)), (0, 2, 1, 4, 3))


def first_back(sizes: Sizes, chunks: jax.Array) -> jax.Array:
    """The inverse of :func:`first`."""
    K, P, T, L, _, _ = sizes
    return jnp.reshape(jnp.transpose(chunks, (0, 2, 1, 4, 3)), (K, T * L, P))


def in_natural_order(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The ``run`` of an implementation whose ``product(sizes, x, kernel_1, kernel_2, bias)`` has blocked outputs.

    Its ``x`` is ``[rows, n]``, its ``bias`` is blocked too.
    """

    def run(x: Any, kernel_1: Any, kernel_2: Any, bias: Any, *, input_parts: int, blocked: bool) -> jax.Array:
        sizes = Sizes.of(x.shape[-1], kernel_1, kernel_2, bias, input_parts)
        y = product(
            sizes,
            jnp.reshape(x, (-1, sizes.inputs)),
            kernel_1,
            kernel_2,
            None if bias is None else blocked_bias(sizes, bias),
        )
        if blocked:
            return y
        return jnp.reshape(jnp.transpose(jnp.reshape(y, (-1, sizes.L, sizes.S)), (0, 2, 1)), (-1, sizes.outputs))

    return run


def blocked_bias(sizes: Sizes, bias: jax.Array) -> jax.Array:
    """``bias [(S L)] -> [(L S)]``."""
    return jnp.reshape(jnp.transpose(jnp.reshape(bias, (sizes.S, sizes.L))), (-1,))
