"""Softmax and sigmoid cross-entropy of one label per image, hard or soft, with label smoothing.

Both are computed in float32 whatever the logits' dtype and stay finite for logits up to 1e38 in magnitude.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_jax.checks import SMOOTHING
from vit_jax.types import Array


def softmax_cross_entropy(logits: Array, labels: Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """-sum_c t_c log softmax(z)_c with the targets t of :func:`smooth_targets`.

    Args:
      logits: z, float[B,C].
      labels: int[B] in [0, C), or soft targets float[B,C] that sum to 1.
      label_smoothing: in [0, 1).

    Returns:
      float32[B], in nats.

    Raises:
      UserError: ``label_smoothing`` outside [0, 1).
    """
    targets = smooth_targets(labels, logits.shape[-1], label_smoothing)
    return -jnp.sum(targets * jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)), axis=-1)


def sigmoid_cross_entropy(logits: Array, labels: Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """-sum_c [t_c log s(z_c) + (1 - t_c) log s(-z_c)], s the logistic function: summed over classes, not averaged.

    The loss of Beyer et al. 2020 ("Are we done with ImageNet?") and of big_vision. A new head wants a negative bias
    near -log(C), or the first loss is C log 2.

    Args:
      logits: z, float[B,C].
      labels: int[B] in [0, C), or soft or multi-hot targets float[B,C] in [0, 1].
      label_smoothing: in [0, 1).

    Returns:
      float32[B], in nats.

    Raises:
      UserError: ``label_smoothing`` outside [0, 1).
    """
    logits = jnp.asarray(logits, jnp.float32)
    targets = smooth_targets(labels, logits.shape[-1], label_smoothing)
    yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -jnp.sum(targets * yes + (1.0 - targets) * no, axis=-1)


def smooth_targets(labels: Array, num_classes: int, label_smoothing: float = 0.0) -> jax.Array:
    """(1 - e) t + e / C for either loss (Szegedy et al. 2016, section 7; for sigmoid the convention of timm).

    Args:
      labels: int[B] (a label outside [0, C) gives a row of zeros: the data pipeline refuses it) or float[B,C].
      num_classes: C.
      label_smoothing: e in [0, 1).

    Returns:
      Targets float32[B,C].

    Raises:
      UserError: ``label_smoothing`` outside [0, 1).
    """
    SMOOTHING.check("label_smoothing", label_smoothing)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        targets = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    else:
        assert labels.shape[-1] == num_classes, (labels.shape, num_classes)
        targets = jnp.asarray(labels, jnp.float32)
    return targets if label_smoothing == 0.0 else (1.0 - label_smoothing) * targets + label_smoothing / num_classes


CROSS_ENTROPIES = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}
PROBABILITIES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}
