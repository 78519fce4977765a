"""One operation on random numbers at one size, with its floor and its dense equal: what a benchmark runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import sharding
from vit_jax.kernels.dispatch import Implementation


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation at one size.

    Attributes:
      run: ``(implementation, x, *parameters) -> y``.
      x: ``[rows, in]`` in the compute type.
      parameters: in the parameter type.
      dense: the parameters -> the float32 weight ``[in, out]`` that they stand for; differentiable.
      implementations: those to choose from.
      flops: 2 per multiply-add of the structured product, forward.
      bytes: what has to be read and written at the least, forward: x, parameters in the compute type, y.
    """

    run: Callable[..., jax.Array]
    x: jax.Array
    parameters: tuple[jax.Array, ...]
    dense: Callable[..., jax.Array]
    implementations: Mapping[str, Implementation]
    flops: float
    bytes: float

    @property
    def weight(self) -> jax.Array:
        """The dense weight, float32 ``[in, out]``."""
        return self.dense(*self.parameters)

    def value(self) -> np.ndarray:
        """``x @ weight`` in float64."""
        return np.asarray(self.x, np.float64) @ np.asarray(self.weight, np.float64)

    def gradients(self, g: jax.Array) -> tuple[np.ndarray | None, ...]:
        """Gradients of ``sum(g * value)`` with respect to ``x`` and each parameter, of integers None; float64.

        The weight's, ``x^T g``, is a product in float64; :attr:`dense` takes it back to the parameters in float32.

        Args:
          g: ``[rows, out]``.
        """
        wide = [p.astype("float32") if jnp.issubdtype(p.dtype, jnp.floating) else p for p in self.parameters]
        g64 = np.asarray(g, np.float64)
        with jax.default_matmul_precision("highest"):
            w, pull = jax.vjp(self.dense, *wide)
            back = pull(jnp.asarray(np.asarray(self.x, np.float64).T @ g64, jnp.float32))
        found = (None if d.dtype == jax.dtypes.float0 else np.asarray(d, np.float64) for d in back)
        return g64 @ np.asarray(w, np.float64).T, *found

    def here(self) -> list[str]:
        """Names of the implementations of this platform."""
        return [name for name, one in self.implementations.items() if one.platform in (None, sharding.platform())]
