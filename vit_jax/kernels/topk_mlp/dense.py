"""All rows of the kernel, as of any other map; and its gradients, which every implementation shares."""

from __future__ import annotations

from typing import Any

import jax

from vit_jax.kernels.products import differentiable, matmul


def run(h: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, k: int) -> jax.Array:
    """``h [..., F] @ kernel + bias``; see ``vit_jax.kernels.topk_mlp``."""
    return matmul(h, kernel, bias)


def _gradients(k: int, h: Any, kernel: Any, bias: Any, g: jax.Array) -> tuple[Any, ...]:
    gradients: tuple[Any, ...] = jax.vjp(matmul, h, kernel, bias)[1](g)  # whose value nobody computes
    return gradients


with_its_gradients = differentiable(_gradients, static=1)
"""Decorates ``forward(k, h, kernel, bias)``: differentiated as the dense product, as what trains has many rows."""
