"""When the Monarch product loses to the dense product with the same weight."""

from __future__ import annotations

import jax


def loses(
    x: jax.Array, kernel_1: jax.Array, kernel_2: jax.Array, bias: jax.Array | None, *, input_parts: int, blocked: bool
) -> str | None:
    """Why the dense product would be faster here, as the end of a sentence, or None. Arrays or shapes."""
    return None
