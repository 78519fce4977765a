"""Masks of attention learn what dense attention would see (Sparsifiner, Wei et al. 2023, arXiv:2303.13755)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import trees
from vit_jax.checks import NonNegative
from vit_jax.layers.predicted import RECONSTRUCTION, Predicted
from vit_jax.metrics import Mean
from vit_jax.objectives.base import Apply, Metrics, PerExample, Rngs
from vit_jax.objectives.classify import Classify
from vit_jax.types import Batch, OutputActivation, Params, UserError


@dataclasses.dataclass(frozen=True)
class Reconstruct(PerExample):
    """``weight * sum (A_predicted - A)^2`` over heads, queries and keys, mean over blocks (section 3.4).

    The first of two phases, of a model whose attention is ``predicted``: it attends to everything, and the predictors
    alone have a gradient, so freeze the others, which weight decay would move. The authors reconstruct the attention of
    a dense teacher with the same weights, which is the model's own here. In the second phase predictors stay as they
    are, and ``distill(hard=1, soft=0.5, feature=0.5, blocks=1)`` trains the others under masks. Evaluated, it is
    classification, with masks.

    Attributes:
      weight: of the sum.
    """

    weight: NonNegative = 0.01

    @property
    def output_activation(self) -> OutputActivation:  # type: ignore[override]
        return "softmax"

    def fit_model(self, model: nn.Module, info: Any) -> nn.Module:
        """A head with one output per class of the data.

        Raises:
          UserError: the model has no predictors.
        """
        if not isinstance(trees.fields(model).get("logit_bias"), Predicted):
            raise UserError(
                "objective='reconstruct' trains predictors of attention's masks, and this model has none; give a ViT "
                "--config.model.logit_bias=predicted."
            )
        return Classify().fit_model(model, info)

    def per_example(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Metrics]:
        if not train:
            return Classify().per_example(apply, params, batch, rngs, train=False)
        _, state = apply(params, batch["image"], train=True, rngs=rngs, mutable=[RECONSTRUCTION])
        error = jnp.mean(jnp.stack(jax.tree.leaves(state[RECONSTRUCTION])), axis=0)
        return self.weight * error, {"error": Mean.of(error, batch["mask"])}
