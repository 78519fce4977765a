"""What ``vit_jax bench kernels`` runs: each operation on random numbers, with its floor and its dense equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from vit_jax.kernels import monarch, sparse24
from vit_jax.kernels.dispatch import Implementation
from vit_jax.kernels.sparse24.packed import compress
from vit_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation at one size.

    Attributes:
      run: ``(implementation, x, *parameters) -> y``.
      x: ``[rows, in]`` in the compute type.
      parameters: in the parameter type.
      weight: float32 ``[in, out]``, the dense matrix that the parameters stand for.
      implementations: those to choose from.
      flops: 2 per multiply-add of the structured product, forward.
      bytes: what has to be read and written at the least, forward: x, parameters in the compute type, y.
    """

    run: Callable[..., jax.Array]
    x: jax.Array
    parameters: tuple[jax.Array, ...]
    weight: jax.Array
    implementations: Mapping[str, Implementation]
    flops: float
    bytes: float

    def here(self) -> list[str]:
        """Names of the implementations of this platform."""
        platform = (None, jax.default_backend())
        return [name for name, one in self.implementations.items() if one.platform in platform]


class Maker(Protocol):
    """A frozen dataclass, the operation's options, that makes its case at a size."""

    def __call__(self, rows: int, inputs: int, outputs: int, dtype: Any) -> Case: ...


@dataclasses.dataclass(frozen=True)
class Monarch:
    """Factors of the middle width min(in, out), as the layer has them.

    Attributes:
      nblocks: blocks of each factor.
    """

    nblocks: int = 4

    def __call__(self, rows: int, inputs: int, outputs: int, dtype: Any) -> Case:
        middle, n = min(inputs, outputs), self.nblocks
        if n < 1 or inputs % n or outputs % n or middle % n**2:
            raise UserError(f"{n} blocks do not divide {inputs} x {outputs} evenly; choose other sizes.")
        q, p, s = middle // n, inputs // n, outputs // n
        keys = jax.random.split(jax.random.key(0), 3)
        x = jax.random.normal(keys[0], (rows, inputs), dtype)
        first = jax.random.normal(keys[1], (n, q, p)) * p**-0.5
        second = jax.random.normal(keys[2], (n, s, q)) * q**-0.5
        size, weights = jnp.dtype(dtype).itemsize, first.size + second.size
        return Case(
            run=lambda implementation, x, a, b: monarch.monarch(x, a, b, implementation=implementation),
            x=x,
            parameters=(first, second),
            weight=monarch.to_dense(first, second),
            implementations=monarch.IMPLEMENTATIONS,
            flops=2.0 * rows * weights,
            bytes=float(size * (rows * (inputs + outputs) + weights)),
        )


@dataclasses.dataclass(frozen=True)
class Sparse24:
    """Packed weights in the compute type; the product has no fewer multiplications, only fewer bytes."""

    def __call__(self, rows: int, inputs: int, outputs: int, dtype: Any) -> Case:
        if inputs % 8:
            raise UserError(f"{inputs} inputs are no multiple of 8, which packed indices need; choose another size.")
        keys = jax.random.split(jax.random.key(0), 2)
        x = jax.random.normal(keys[0], (rows, inputs), dtype)
        values, index = compress(jax.random.normal(keys[1], (inputs, outputs)) * inputs**-0.5, dtype)
        size = jnp.dtype(dtype).itemsize
        return Case(
            run=lambda implementation, x, v, i: sparse24.sparse24(x, v, i, implementation=implementation),
            x=x,
            parameters=(values, index),
            weight=sparse24.unpack(values, index).astype(jnp.float32),
            implementations=sparse24.IMPLEMENTATIONS,
            flops=2.0 * rows * inputs * outputs,
            bytes=float(size * (rows * (inputs + outputs) + values.size) + index.size),
        )


CASES: dict[str, Callable[..., Maker]] = {"monarch": Monarch, "sparse24": Sparse24}
