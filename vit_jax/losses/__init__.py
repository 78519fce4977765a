"""Losses: pure functions of arrays that return one value per example; no reduction, no model, no mesh."""

from vit_jax.losses.classification import CROSS_ENTROPIES as CROSS_ENTROPIES
from vit_jax.losses.classification import PROBABILITIES as PROBABILITIES
from vit_jax.losses.classification import Link as Link
from vit_jax.losses.classification import sigmoid_cross_entropy as sigmoid_cross_entropy
from vit_jax.losses.classification import smooth_targets as smooth_targets
from vit_jax.losses.classification import softmax_cross_entropy as softmax_cross_entropy
