"""Distillation: a student is pulled towards a teacher's logits, features or similarities; the teacher stays fixed."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax import checks
from vit_jax.losses.contrastive import hide
from vit_jax.losses.pairs import LOGSUMEXP, Reduction, Side, accumulator, logits
from vit_jax.types import Array


def logit_distillation(student: Array, teacher: Array, *, temperature: float = 1.0) -> jax.Array:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))`` (Hinton et al. 2015, arXiv:1503.02531, section 2).

    The factor keeps the gradient's size whatever T is.

    Args:
      student: logits float ``[B, C]``.
      teacher: logits float ``[B, C]``.
      temperature: T, positive.

    Returns:
      float32 ``[B]``, in nats.

    Raises:
      UserError: ``temperature`` is not positive.
    """
    checks.positive("temperature", temperature, ", 1 to 4 is usual")
    log_q = jax.nn.log_softmax(_wide(student) / temperature)
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(_wide(teacher)) / temperature)
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def cosine_distillation(student: Array, teacher: Array) -> jax.Array:
    """1 - cosine of the angle between features float ``[B, D]``: float32 ``[B]`` in [0, 2]; 1 where one is zero."""
    s, t = _wide(student), jax.lax.stop_gradient(_wide(teacher))
    squares = jnp.sum(s * s, -1) * jnp.sum(t * t, -1)
    return 1.0 - jnp.sum(s * t, -1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def l2_distillation(student: Array, teacher: Array) -> jax.Array:
    """Squared distance between features float ``[B, D]``, float32 ``[B]``: the sum over D, not the mean."""
    return jnp.sum(jnp.square(_wide(student) - jax.lax.stop_gradient(_wide(teacher))), -1)


def affinity_distillation(
    image: Array,
    text: Array,
    scale: Array,
    teacher_image: Array,
    teacher_text: Array,
    teacher_scale: Array,
    mask: Array,
) -> jax.Array:
    """Cross-entropy of the student's image-to-text and text-to-image distributions under the teacher's.

    ``1/2 sum over both directions of -sum_j p_ij log q_ij`` with ``p = softmax_j(s_T x_i.y_j)`` at the teacher's own
    scale (TinyCLIP, Wu et al. 2023, affinity mimicking). It differs from the KL divergence (MobileCLIP, Vasu et al.
    2024) by the teacher's entropy, which has no gradient. The teacher's embeddings may be of another width.

    Args:
      image: unit embeddings float32 ``[B, E]`` of the student.
      text: as ``image``.
      scale: the student's, ``[]``.
      teacher_image: unit embeddings float32 ``[B, E']``.
      teacher_text: as ``teacher_image``.
      teacher_scale: the teacher's, ``[]``.
      mask: bool ``[B]``: masked rows are neither anchors nor choices.

    Returns:
      float32 ``[B]``, in nats, 0 for the masked.
    """

    def matrix(x: Array, y: Array, s: Array) -> jax.Array:
        return logits(Reduction(LOGSUMEXP), Side.of(hide(x, mask), mask), Side.of(hide(y, mask), mask), s, None)

    ours = matrix(image, text, scale)
    theirs = jax.lax.stop_gradient(matrix(teacher_image, teacher_text, teacher_scale))
    both = [-jnp.sum(jax.nn.softmax(t) * jax.nn.log_softmax(z), -1) for z, t in ((ours, theirs), (ours.T, theirs.T))]
    return jnp.where(mask, 0.5 * (both[0] + both[1]), 0.0)


def _wide(x: Array) -> jax.Array:
    return jnp.asarray(x).astype(accumulator(x))
