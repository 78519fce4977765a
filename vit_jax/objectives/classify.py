"""Classification by softmax or sigmoid cross-entropy."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import losses
from vit_jax.checks import Smoothing
from vit_jax.metrics import Mean
from vit_jax.models import ImageModel
from vit_jax.objectives import activity
from vit_jax.objectives.base import Apply, Metrics, PerExample, Rngs
from vit_jax.types import Batch, OutputActivation, Params, UserError


@dataclasses.dataclass(frozen=True)
class Classify(PerExample):
    """Reads ``image`` and ``label`` (int32[B], or soft float32[B,C] after mixing).

    Attributes:
      output_activation: how logits become probabilities: ``"softmax"``, one distribution over the classes, or
        ``"sigmoid"``, a yes or no for each class.
      label_smoothing: share of every label's probability spread over all classes, in [0, 1).
      activity: also measure the share of hidden units that are not 0, MLP by MLP, as the metrics ``active`` ...
    """

    output_activation: OutputActivation = dataclasses.field(default="softmax", metadata={"formerly": "link"})
    label_smoothing: Smoothing = 0.0
    activity: bool = False

    def fit_model(self, model: nn.Module, info: Any) -> nn.Module:
        """A head with one output per class of the data."""
        if not isinstance(model, ImageModel):
            raise UserError(
                f"objective='classify' trains image models, and {type(model).__name__} embeds images and texts; take "
                "objective='contrast' (or 'coca'), or a model such as vit_b16."
            )
        if info.captions and info.num_classes < 2:
            raise UserError(
                "the data has captions and no classes, and to classify takes two; set data.text and "
                "objective='contrast', or take data with classes."
            )
        if info.num_classes == 1:
            raise UserError(f"the data has one class only ({info.class_names[0]}); to classify takes two.")
        return model.clone(num_classes=info.num_classes)

    def per_example(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Metrics]:
        forward: Any = functools.partial(activity.shares, apply, batch["mask"]) if self.activity else apply
        out = forward(params, batch["image"], train=train, rngs=rngs if train else None)
        logits, shares = out if self.activity else (out, None)
        smoothing = self.label_smoothing if train else 0.0
        values = losses.CROSS_ENTROPIES[self.output_activation](logits, batch["label"], label_smoothing=smoothing)
        label = batch["label"] if batch["label"].ndim == 1 else jnp.argmax(batch["label"], -1)
        hits = jnp.argmax(logits, -1).astype(jnp.int32) == label.astype(jnp.int32)
        found = {"accuracy": Mean.of(hits, batch["mask"])}
        return values, found if shares is None else found | activity.metrics(shares, batch["mask"])
