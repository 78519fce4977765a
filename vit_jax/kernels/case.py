"""One operation on random numbers at one size, with its floor and its dense equal: what a benchmark runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from vit_jax.kernels.dispatch import Implementation


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
