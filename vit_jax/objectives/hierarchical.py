"""Classification with coarse classes on the way (TransHP, Wang et al. 2023, arXiv:2304.06385)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from vit_jax import losses, trees
from vit_jax.checks import NonNegative, Smoothing
from vit_jax.data import levels as hierarchy
from vit_jax.layers.tokens.prompts import LEVELS
from vit_jax.metrics import Mean
from vit_jax.models.roles import LAYER
from vit_jax.objectives.base import Apply, Metrics, PerExample, Rngs
from vit_jax.objectives.classify import Classify
from vit_jax.types import Array, Batch, OutputActivation, Params, UserError


@dataclasses.dataclass(frozen=True)
class Hierarchical(PerExample):
    """``cross-entropy + sum_l w_l cross-entropy_l`` (section 3.3), l being levels of coarse classes.

    The l-th of the model's ``prompts``, by block, tells level l. Coarse labels follow from the fine ones, those of
    mixed images in the same shares. Evaluated it is :class:`Classify`; no coarse label is needed then.

    Attributes:
      levels: a CSV file with a row for each class, in the order of the data: its name, then its coarse classes; or a
        folder in which the classes' folders lie in those of their coarse classes.
      weights: w, level by level; empty: 1 each.
      label_smoothing: share of every label's probability spread over all classes of its level, in [0, 1).
    """

    levels: str
    weights: tuple[NonNegative, ...] = ()
    label_smoothing: Smoothing = 0.0

    @property
    def labels(self) -> Classify:
        """What is left without levels."""
        return Classify(label_smoothing=self.label_smoothing)

    @property
    def output_activation(self) -> OutputActivation:  # type: ignore[override]
        return "softmax"

    def fit_model(self, model: nn.Module, info: Any) -> nn.Module:
        """A head with one output per class of the data.

        Raises:
          UserError: the levels are those of other classes, or the model's prompts are not of these levels.
        """
        found = hierarchy.read(self.levels)
        hierarchy.check(found, info.class_names, self.levels)
        wanted = tuple(map(len, found.names))
        given = trees.fields(model).get("prompts", ())
        if tuple(size for _, size in sorted(given)) != wanted:
            blocks = ", ".join(f"({i + 1}, {size})" for i, size in enumerate(wanted))
            raise UserError(
                f"levels={self.levels!r} have {', '.join(map(str, wanted))} coarse classes, and the model's prompts "
                f"are {given}; give a ViT a block for each, --config.model.prompts='({blocks},)' for example."
            )
        if self.weights and len(self.weights) != len(wanted):
            raise UserError(f"weights={self.weights} are for {len(self.weights)} levels, and there are {len(wanted)}.")
        return self.labels.fit_model(model, info)

    def per_example(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Metrics]:
        if not train:
            return self.labels.per_example(apply, params, batch, rngs, train=False)
        logits, state = apply(params, batch["image"], train=True, rngs=rngs, mutable=[LEVELS])
        total, metrics = self.labels.per_example(lambda *_, **__: logits, params, batch, rngs, train=True)
        found = hierarchy.read(self.levels)
        weights = self.weights or (1.0,) * len(found.names)
        for i, (coarse, weight) in enumerate(zip(by_block(state[LEVELS]), weights, strict=True)):
            label = coarse_labels(batch["label"], jnp.asarray(found.labels[:, i]), len(found.names[i]))
            values = losses.CROSS_ENTROPIES["softmax"](coarse, label, label_smoothing=self.label_smoothing)
            hits = jnp.argmax(coarse, -1) == (label if label.ndim == 1 else jnp.argmax(label, -1))
            metrics[f"level_{i + 1}/accuracy"] = Mean.of(hits, batch["mask"])
            total += weight * values
        return total, metrics


def by_block(found: Any) -> list[jax.Array]:
    """The coarse logits ``[B, C]`` of all levels, first block first."""
    flat = flatten_dict(found)
    order = sorted(flat, key=lambda path: [int(match[2]) for match in map(LAYER.match, path) if match])
    return [flat[path] for path in order]


def coarse_labels(label: Array, coarse: jax.Array, count: int) -> jax.Array:
    """Labels int ``[B]`` or soft float ``[B, classes]`` of coarse classes; ``coarse`` int ``[classes]``."""
    if label.ndim == 1:
        return coarse[label]
    return jnp.asarray(label) @ jax.nn.one_hot(coarse, count, dtype=label.dtype)
