"""All rows of the kernel, as of any other map; and its gradients, which every implementation shares."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from vit_jax.kernels.products import matmul


def run(h: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, k: int) -> jax.Array:
    """``h [..., F] @ kernel + bias``; see ``vit_jax.kernels.topk_mlp``."""
    return matmul(h, kernel, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def with_its_gradients(
    forward: Callable[..., jax.Array], k: int, h: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> jax.Array:
    """``forward(h, kernel, bias, k)``, differentiated as the dense product: what trains has many rows."""
    return forward(h, kernel, bias, k)


def _fwd(forward: Callable[..., jax.Array], k: int, *args: Any) -> tuple[jax.Array, Any]:
    return forward(*args, k), args


def _bwd(forward: Callable[..., jax.Array], k: int, args: Any, g: jax.Array) -> tuple[Any, ...]:
    gradients: tuple[Any, ...] = jax.vjp(matmul, *args)[1](g)  # of this product nothing but the gradients is computed
    return gradients


with_its_gradients.defvjp(_fwd, _bwd)
