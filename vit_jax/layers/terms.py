"""Terms of attention's logits by name, values of a Transformer's ``logit_bias``, and two that multiply."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import config
from vit_jax.checks import Checked, Positive, Range
from vit_jax.layers.hooks import LogitBias, Term
from vit_jax.layers.linear import logical
from vit_jax.layers.predicted import Predicted
from vit_jax.layers.relative import Relative


def logits(q: jax.Array, k: jax.Array) -> jax.Array:
    """``q k^T / sqrt(E)`` float32 ``[B, K, N, M]``, the product that attention makes: it is computed once."""
    q, k = jnp.swapaxes(q, 1, 2), jnp.swapaxes(k, 1, 2)
    dims = (((3,), (3,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(q, k, dims, preferred_element_type=jnp.float32) * (q.shape[-1] ** -0.5)


@dataclasses.dataclass(frozen=True)
class Signed(Checked):
    """Cog attention: ``w = sign(p) softmax(|p|)`` of the logits p (arXiv:2411.07176).

    A head may subtract what it attends to; the magnitudes of weights sum to 1. Where all logits are positive it is
    ordinary attention. It cannot start from weights that were trained otherwise.
    """

    def __call__(self, *, name: str) -> Callable[[jax.Array, jax.Array], Term]:
        return signed


def signed(q: jax.Array, k: jax.Array) -> Term:
    """What makes ``|p|`` of the logits p, and their signs, through which no gradient goes."""
    p = logits(q, k)
    return Term(jnp.abs(p) - p, jax.lax.stop_gradient(jnp.sign(p)))


class GaussianMask(nn.Module):
    """``amplitude`` and ``sigma [kernels, K]``: the mixture of each head.

    Attributes:
      kernels: how many Gaussians there are.
      start: widths of the first and so on, in patches.
    """

    kernels: int
    start: tuple[float, ...]

    @nn.compact
    def __call__(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """``q, k [B, N, K, E]`` of a square grid, perhaps behind other tokens -> float32 ``[B, K, N, N]``."""
        heads = q.shape[2]
        widths = lambda _, shape: jnp.broadcast_to(jnp.asarray(self.start)[:, None], shape)  # noqa: E731
        even = nn.initializers.constant(1 / self.kernels)
        amplitude, sigma = (
            self.param(name, logical(init, (None, "heads")), (self.kernels, heads)).astype(jnp.float32)
            for name, init in (("amplitude", even), ("sigma", widths))
        )
        squares = squared_distances(q.shape[1]).astype(np.float32)
        mixture = jnp.exp(-squares[None, None] / (2 * (jnp.square(sigma) + EPSILON))[:, :, None, None])
        mask = jnp.sum(amplitude[:, :, None, None] * mixture, axis=0)
        before = q.shape[1] - len(squares)
        mask = jnp.pad(mask, ((0, 0), (before, 0), (before, 0)), constant_values=1)
        return logits(q, k) * (mask[None] - 1)


EPSILON = 1e-5
"""Added to the square of a width, as the authors do."""


def squared_distances(tokens: int) -> np.ndarray:
    """Between the patches of the largest square grid of so many tokens, int ``[side * side] * 2``."""
    at = np.indices((math.isqrt(tokens),) * 2).reshape(2, -1)
    return np.sum(np.square(at[:, :, None] - at[:, None]), axis=0)


@dataclasses.dataclass(frozen=True)
class Gaussian(Checked):
    """A mixture of Gaussians that the logits are multiplied with, for small data (arXiv:2309.05375).

    ``M_ij = sum_k a_k exp(-r_ij^2 / 2)^(1 / (s_k^2 + 1e-5))``, r being the distance of two patches of a square grid,
    with a and s for each head, whatever the size of the grid. Tokens before the grid have no distance, and M = 1. The
    authors draw a ~ N(0, 2^2) and s ~ N(10, 10^2), by which half of the multipliers are negative at first; here M
    starts near 1, which is attention without it.

    Attributes:
      kernels: Gaussians of a head.
      sigma: width s of the first, in patches; each other one starts at twice that before it, amplitudes at their share.
    """

    kernels: Annotated[int, Range(1, 64)] = 3
    sigma: Positive = 10.0

    def __call__(self, *, name: str) -> GaussianMask:
        return GaussianMask(self.kernels, tuple(self.sigma * 2**i for i in range(self.kernels)), name=name)


LOGIT_BIASES = {"relative": Relative, "gaussian": Gaussian, "signed": Signed, "predicted": Predicted}
LogitBiasSpec = Annotated[LogitBias, config.Choice(LOGIT_BIASES, LogitBias)]
"""Type of a module's field that holds a :class:`~vit_jax.layers.hooks.LogitBias`."""
