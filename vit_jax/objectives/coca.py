"""Contrastive and captioning training from one forward pass (CoCa, Yu et al. 2022, arXiv:2205.01917)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from vit_jax import losses
from vit_jax.checks import NonNegative, Smoothing
from vit_jax.objectives.base import Metrics
from vit_jax.objectives.contrast import Contrast
from vit_jax.objectives.pairs import CONTRASTIVE, first_caption, mean_of
from vit_jax.types import Batch, UserError


@dataclasses.dataclass(frozen=True)
class CoCa(Contrast):
    """``contrastive_weight * contrastive + caption_weight * caption`` (section 3.2; equation 3 for the caption).

    The caption loss is the mean over the tokens of the whole batch that are to be predicted: every real one but the
    first. It is accumulated exactly too.

    Attributes:
      contrastive_weight: weight of the contrastive loss; 1 in the paper.
      caption_weight: weight of the caption loss; 2 in the paper.
      label_smoothing: share of every target token's probability spread over the vocabulary, in [0, 1).
      z_loss: weight of the squared logarithm of the softmax's normaliser, added to the caption loss; 0 adds none.
    """

    contrastive_weight: NonNegative = 1.0
    caption_weight: NonNegative = 2.0
    label_smoothing: Smoothing = 0.0
    z_loss: NonNegative = 0.0

    @property
    def weights(self) -> Mapping[str, float]:
        return {CONTRASTIVE: self.contrastive_weight, "caption": self.caption_weight}

    def terms(self, out: Any, batch: Batch, *, train: bool) -> Metrics:
        """The caption loss; outside training the plain cross-entropy."""
        if out.hidden is None:
            raise UserError("objective 'coca' needs a model that writes captions; take coca_vit_b32 for instance.")
        real = out.real[:, 1:] & jnp.asarray(batch["mask"])[:, None]
        options: dict[str, Any] = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss} if train else {}
        targets = first_caption(batch)[:, 1:]
        values = losses.caption_cross_entropy(out.hidden[:, :-1], out.vocabulary, targets, real, **options)
        return {"caption": mean_of(values, real)}
