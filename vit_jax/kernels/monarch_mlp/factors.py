"""The parameters of a Monarch map."""

from __future__ import annotations

from typing import NamedTuple

import jax


class Factors(NamedTuple):
    """As :func:`vit_jax.kernels.monarch.monarch` takes them.

    Attributes:
      kernel_1: ``[k, q, p]``.
      kernel_2: ``[l, s, r]``.
      bias: ``[l * s]`` in natural order, or None.
    """

    kernel_1: jax.Array
    kernel_2: jax.Array
    bias: jax.Array | None
