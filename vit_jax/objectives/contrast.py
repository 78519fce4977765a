"""Contrastive training of an image and a text tower: CLIP, SigLIP, LiT, CLOOB."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp

from vit_jax import losses
from vit_jax.config import Choice
from vit_jax.metrics import Mean
from vit_jax.objectives.base import Metrics
from vit_jax.objectives.pairs import CONTRASTIVE, LogitScaleBias, Pair, Pairs
from vit_jax.types import Array, OutputActivation


@dataclasses.dataclass(frozen=True)
class Contrast(Pairs):
    """A contrastive loss; metrics are the accuracy of the nearest partner both ways and the logits' scale and bias.

    Attributes:
      loss: row of ``losses.CONTRASTIVE``: "softmax", "sigmoid" or "cloob".
      form: row of ``losses.FORMS``, how to go through all pairs; the result is the same. "dense" keeps them all, which
        suits batches up to some thousand pairs per device; "chunked" and "ring" do not, on one device and on several.
    """

    loss: Annotated[losses.ContrastiveLoss, Choice(losses.CONTRASTIVE, losses.ContrastiveLoss)] = losses.Softmax()
    form: Annotated[losses.PairwiseBackend, Choice(losses.FORMS, losses.PairwiseBackend)] = losses.Dense()

    @property
    def output_activation(self) -> OutputActivation:  # type: ignore[override]
        """How the logits of an image and several texts become probabilities: sigmoid of each, with SigLIP's loss."""
        return "sigmoid" if isinstance(self.loss, losses.Sigmoid) else "softmax"

    @property
    def weights(self) -> Mapping[str, float]:
        return {CONTRASTIVE: 1.0}

    def contrast(self, pair: Pair, shared: LogitScaleBias, mask: Array) -> tuple[jax.Array, Metrics]:
        values = self.loss(*pair, *shared, mask, self.form)
        to_text, to_image = losses.top1(*pair, mask, self.form)
        metrics = {"image_to_text": Mean.of(to_text, mask), "text_to_image": Mean.of(to_image, mask)}
        scalars = {"scale": shared.scale, **({"bias": shared.bias} if self.loss.biased else {})}
        return values, metrics | {k: Mean.of(jax.lax.stop_gradient(jnp.reshape(v, (1,)))) for k, v in scalars.items()}
