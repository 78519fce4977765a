"""Attention to the keys that a small predictor expects (Sparsifiner, Wei et al. 2023, arXiv:2303.13755)."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import Checked, Count, Range, Share
from vit_jax.layers.attention import attention_weights
from vit_jax.layers.linear import Linear, logical
from vit_jax.layers.mlp import largest
from vit_jax.types import UserError

RECONSTRUCTION = "reconstruction"
"""Collection that gets the ``error`` float32 ``[B]`` of each predictor while it is trained."""


@dataclasses.dataclass(frozen=True)
class Predicted(Checked):
    """Each query of each head attends to the ``ceil(keep N)`` keys whose weights a predictor expects to be largest.

    ``A = softmax(q' (P^T k')^T / sqrt(K)) B``: queries and keys are mapped to fewer channels, q' and k', keys to fewer
    tokens, P, and B leads back to all of them (section 3.2; 1 / sqrt(K), K heads, is the scale of the authors' code).
    Of each row of the softmax the largest ``coefficients`` count, of B what is above ``threshold`` in magnitude, whose
    sign stays (their code drops it). Masks have no gradient: the objective ``reconstruct`` trains the predictor.

    Masks are dense here, as in the published code: nothing is faster by them, and ``vit_jax models`` says beside what
    is computed what would be if it were not.

    Attributes:
      keep: share of the keys.
      tokens: P leads to ``N / tokens`` keys, rounded down.
      channels: q' and k' have ``E / channels`` channels, rounded down.
      coefficients: entries of a row of the softmax that count.
      threshold: entries of B up to it count as 0.
      rows: how many of the first tokens attend to all: the class token; 0 where there is none.
    """

    keep: Annotated[float, Range(0, 1, "(]")] = 0.25
    tokens: Count = 6
    channels: Count = 2
    coefficients: Count = 8
    threshold: Share = 0.02
    rows: Annotated[int, Range(0, 1024)] = 1

    def __call__(self, *, name: str) -> MaskPredictor:
        return MaskPredictor(self, name=name)

    def count(self, tokens: int) -> int:
        """Keys of a query of so many tokens."""
        return math.ceil(self.keep * tokens)


class MaskPredictor(nn.Module):
    """Maps ``predict_query`` and ``predict_key`` ``[E, c]``, the same for all heads, P and B ``predict_down``, ``_up``.

    Attributes:
      spec: its options.
    """

    spec: Predicted

    @nn.compact
    def __call__(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """``q, k [B, N, K, E]`` -> float32 ``[B, K, N, N]``, 0 where a query may attend, the least number elsewhere.

        While the collection "reconstruction" is written to, all may, and it gets ``sum (A - softmax(q k^T))^2`` of the
        rows that are predicted, by which only the predictor has a gradient.

        Raises:
          UserError: too few tokens for the predictor.
        """
        spec, (tokens, heads) = self.spec, q.shape[1:3]
        narrow, few = max(1, q.shape[3] // spec.channels), tokens // spec.tokens
        if not few:
            raise UserError(f"predicted(tokens={spec.tokens}) leaves none of {tokens} tokens; give at most {tokens}.")
        q, k = jax.lax.stop_gradient((q, k))
        short = lambda x, of: Linear(narrow, (None, None), name=f"predict_{of}")(x.astype(jnp.float32))  # noqa: E731
        init = logical(nn.initializers.truncated_normal(0.02), (None, None))
        down, up = (self.param(f"predict_{way}", init, (tokens, few)).astype(jnp.float32) for way in ("down", "up"))
        keys = jnp.einsum("bnkc,nm->bmkc", short(k, "key"), down)
        logits = jnp.einsum("bnkc,bmkc->bknm", short(q, "query")[:, spec.rows :], keys)
        shares = jax.nn.softmax(logits * heads**-0.5, axis=-1)
        if self.is_mutable_collection(RECONSTRUCTION) and not self.is_initializing():
            wanted = attention_weights(q, k)[:, :, spec.rows :]
            error = jnp.sum(jnp.square(shares @ up.T - wanted), axis=(1, 2, 3))
            self.put_variable(RECONSTRUCTION, "error", error)
            return jnp.zeros((1, 1, 1, 1))
        shares = jnp.where(largest(shares, spec.coefficients), shares, 0.0)
        up = jnp.where(jnp.abs(up) > spec.threshold, up, 0.0)
        seen = largest(shares @ up.T, spec.count(tokens))
        bias = jnp.where(seen, 0.0, jnp.finfo(jnp.float32).min)
        return jax.lax.stop_gradient(jnp.pad(bias, ((0, 0), (0, 0), (spec.rows, 0), (0, 0))))
