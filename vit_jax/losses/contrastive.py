"""Contrastive losses of image-text pairs, written once for every form of going through all pairs.

A loss is a frozen value, called with global arrays: unit embeddings ``image`` and ``text`` float32[B,E], row i of one
belonging to row i of the other; ``scale`` [] the inverse temperature; ``bias`` [] that only the sigmoid loss uses;
``mask`` bool[B]. Rows that are masked are neither anchors nor negatives, whatever they hold. It returns float32[B], in
nats, 0 for the masked; the mean over the others is the loss of the paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from vit_jax.checks import INFINITE, Checked, Range
from vit_jax.layers.norm import unit
from vit_jax.losses.blockwise import Chunked, Ring
from vit_jax.losses.pairs import LOGSUMEXP, MAX, SOFTPLUS, Dense, PairwiseBackend, Reduction
from vit_jax.types import Array

DENSE = Dense()
FORMS: dict[str, Callable[..., PairwiseBackend]] = {"dense": Dense, "chunked": Chunked, "ring": Ring}


@runtime_checkable
class ContrastiveLoss(Protocol):
    """``biased``: whether ``bias`` has an influence."""

    biased: ClassVar[bool]

    def __call__(
        self, image: Array, text: Array, scale: Array, bias: Array, mask: Array, form: PairwiseBackend = ...
    ) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Symmetric InfoNCE of CLIP (Radford et al. 2021, figure 3): the right text among all, the right image among all.

    ``L_i = 1/2 [LSE_j(s x_i.y_j) - s x_i.y_i] + 1/2 [LSE_j(s x_j.y_i) - s x_i.y_i]``
    """

    biased: ClassVar[bool] = False

    def __call__(
        self, image: Array, text: Array, scale: Array, bias: Array, mask: Array, form: PairwiseBackend = DENSE
    ) -> jax.Array:
        x, y = hide(image, mask), hide(text, mask)
        rows, columns = form.reduce(Reduction(LOGSUMEXP, columns=True), x, y, scale, None, mask)
        return jnp.where(mask, 0.5 * (rows + columns) - scale * _dots(x, y), 0.0)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """SigLIP (Zhai et al. 2023, algorithm 1): every pair on its own, does it belong together?

    ``L_i = sum_j softplus(-z_ij (s x_i.y_j + b))`` with z = 1 for the pair itself and -1 for all others. Summed over
    the texts of an image: the mean over images is the paper's sum / n, not the mean over pairs.
    """

    biased: ClassVar[bool] = True

    def __call__(
        self, image: Array, text: Array, scale: Array, bias: Array, mask: Array, form: PairwiseBackend = DENSE
    ) -> jax.Array:
        x, y = hide(image, mask), hide(text, mask)
        (negatives,) = form.reduce(Reduction(SOFTPLUS, diagonal=False), x, y, scale, bias, mask)
        return jnp.where(mask, negatives + jax.nn.softplus(-(scale * _dots(x, y) + bias)), 0.0)


@dataclasses.dataclass(frozen=True)
class Cloob(Checked):
    """InfoLOOB on Hopfield-retrieved embeddings (Fuerst et al. 2022, arXiv:2110.11316, equations 1 to 5).

    Each embedding is replaced by what it retrieves from the images of the batch (U) and from its texts (V), itself
    included, of unit length again. With tau = 1 / s, leaving the positive out of the denominator,
    ``L_i = tau [LSE_{j!=i}(U_xi.U_yj / tau) - U_xi.U_yi / tau] + tau [LSE_{j!=i}(V_xj.V_yi / tau) - V_xi.V_yi / tau]``.
    The factor tau is the authors' code's. May be negative. The authors keep s fixed (30).

    Attributes:
      beta: inverse temperature of the retrieval (8 in the paper's runs on CC).
    """

    beta: Annotated[float, Range(0, INFINITE, "()", ", 8 for instance")] = 8.0
    biased: ClassVar[bool] = False

    def __call__(
        self, image: Array, text: Array, scale: Array, bias: Array, mask: Array, form: PairwiseBackend = DENSE
    ) -> jax.Array:
        x, y = hide(image, mask), hide(text, mask)

        def term(anchor: jax.Array, other: jax.Array, memory: jax.Array) -> jax.Array:
            a, c = (unit(form.hopfield_retrieve(self.beta, query, memory, mask)) for query in (anchor, other))
            (negatives,) = form.reduce(Reduction(LOGSUMEXP, diagonal=False), a, c, scale, None, mask)
            return negatives / scale - _dots(a, c)

        alone = jnp.sum(jnp.asarray(mask), dtype=jnp.int32) < 2  # one pair without a negative has nothing to learn
        return jnp.where(mask & ~alone, term(x, y, x) + term(y, x, y), 0.0)


CONTRASTIVE: dict[str, Callable[..., ContrastiveLoss]] = {"softmax": Softmax, "sigmoid": Sigmoid, "cloob": Cloob}


def top1(image: Array, text: Array, mask: Array, form: PairwiseBackend = DENSE) -> tuple[jax.Array, jax.Array]:
    """Whether each image's nearest text is its own, and each text's nearest image, bool[B].

    A tie is a miss, and so is a masked row.
    """
    x, y = (jax.lax.stop_gradient(hide(e, mask)) for e in (image, text))
    rows, columns = form.reduce(Reduction(MAX, diagonal=False, columns=True), x, y, jnp.ones((), x.dtype), None, mask)
    own = _dots(x, y)
    return (own > rows) & mask, (own > columns) & mask


def hide(embedding: Array, mask: Array) -> jax.Array:
    """Zeros in the place of masked rows, even of NaN."""
    return jnp.where(jnp.asarray(mask)[:, None], jnp.asarray(embedding), 0.0)


def _dots(a: jax.Array, c: jax.Array) -> jax.Array:
    return jnp.sum(a * c, axis=-1)
