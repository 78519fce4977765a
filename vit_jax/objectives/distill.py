"""Distillation: a classifier learns from labels and from a teacher's logits and block outputs.

The mixed strategy of GPUSQ-ViT (Yu et al. 2023, arXiv:2305.10727, section 3), which brings a dense model to 2:4 sparse
weights and from there to integers. Both stages are runs with this objective, the dense model being teacher and start:
``model.mlp_linear='sparse24(mask="frozen")'`` in the first, ``'sparse24(mask="frozen", bits=8)'`` in the second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from vit_jax import losses
from vit_jax.checks import INFINITE, NonNegative, Range, Smoothing
from vit_jax.metrics import Mean
from vit_jax.models.roles import LAYER
from vit_jax.objectives.base import Apply, Metrics, PerExample, Rngs
from vit_jax.objectives.classify import Classify
from vit_jax.types import Array, Batch, OutputActivation, Params, UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Teacher:
    """The frozen teacher: a pytree, so that its parameters can be an argument of a compiled program.

    Attributes:
      params: the teacher's parameters.
      apply: the teacher as a function of its parameters.
    """

    params: Params
    apply: Apply = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Distill(PerExample):
    """``hard * cross-entropy + soft * T^2 KL(teacher || student) + feature * mean square difference of block outputs``.

    Evaluated, it is :class:`Classify`: labels alone count. To be trained it is bound to its teacher, which sees the
    same augmented images, in evaluation mode, and gets no gradient.

    Equal weights of labels and teacher at temperature 1 are the defaults of DeiT's published code (Touvron et al. 2021,
    arXiv:2012.12877, section 4); Hinton et al. 2015 (arXiv:1503.02531, section 2) give labels less weight and raise the
    temperature. Only late blocks are mimicked, as in GPUSQ-ViT, which adds up the blocks' means; the mean over blocks
    here keeps the weight's meaning whatever their number.

    Attributes:
      teacher: the frozen teacher's weights: a run's folder, a file of weights or ``hf://org/name``.
      hard: weight of the labels' cross-entropy; 0 leaves labels out, the paper's unsupervised form.
      soft: weight of the logits' divergence; 0 takes a teacher of any classes.
      feature: weight of the block outputs' difference, mean over blocks, tokens and channels; 0 takes a teacher of any
        width.
      temperature: T, by which the logits of teacher and student are divided before they are compared.
      blocks: how many of the last blocks are mimicked.
      output_activation: how logits become probabilities: "softmax", one distribution over the classes, or "sigmoid",
        a yes or no for each class, whose divergences are summed.
      label_smoothing: share of every label's probability spread over all classes, in [0, 1).
    """

    teacher: str
    hard: NonNegative = 1.0
    soft: NonNegative = 1.0
    feature: NonNegative = 1.0
    temperature: Annotated[float, Range(0, INFINITE, "()", ", 1 to 4 is usual")] = 1.0
    blocks: Annotated[int, Range(1, 512, hint=", or feature=0 to mimic none")] = 3
    output_activation: OutputActivation = dataclasses.field(default="softmax", metadata={"formerly": "link"})
    label_smoothing: Smoothing = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.soft == self.feature == 0:
            raise UserError("soft=0 and feature=0 leave nothing to learn from the teacher; take objective='classify'.")

    @property
    def labels(self) -> Classify:
        """What is left without the teacher."""
        return Classify(output_activation=self.output_activation, label_smoothing=self.label_smoothing)

    def fit_model(self, model: nn.Module, info: Any) -> nn.Module:
        """A head with one output per class of the data.

        Raises:
          UserError: the model is none for classes.
        """
        return self.labels.fit_model(model, info)

    def frozen_inputs(self, load: Callable[[Distill], Teacher]) -> Teacher:
        """The teacher."""
        return load(self)

    def bind(self, frozen: Teacher, state: Any) -> BoundDistill:
        """This objective with its teacher at hand."""
        return BoundDistill(self, frozen)

    def per_example(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Metrics]:
        assert not train, "an objective with a teacher is trained as what bind() returns"
        return self.labels.per_example(apply, params, batch, rngs, train=False)


@dataclasses.dataclass(frozen=True)
class BoundDistill(PerExample):
    """:class:`Distill` with its teacher at hand.

    Attributes:
      objective: the objective's weights and options.
      teacher: the frozen teacher.
    """

    objective: Distill
    teacher: Teacher

    def per_example(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Metrics]:
        o, mask = self.objective, batch["mask"]
        if not train:
            return o.per_example(apply, params, batch, rngs, train=False)
        blocks = o.blocks if o.feature else 0
        ours, found = with_blocks(apply, blocks, params, batch["image"], train=True, rngs=rngs)
        theirs, wanted = jax.lax.stop_gradient(
            with_blocks(self.teacher.apply, blocks, self.teacher.params, batch["image"], train=False)
        )
        terms: dict[str, tuple[float, jax.Array]] = {}
        hard, metrics = o.labels.per_example(lambda *_, **__: ours, params, batch, rngs, train=True)
        if o.hard:
            terms["hard"] = o.hard, hard
        if o.soft:
            terms["soft"] = o.soft, divergence(ours, theirs, o.temperature, o.output_activation)
            metrics["agreement"] = Mean.of(jnp.argmax(ours, -1) == jnp.argmax(theirs, -1), mask)
        if o.feature:
            terms["feature"] = o.feature, distance(found, wanted)
        loss = sum((weight * value for weight, value in terms.values()), jnp.zeros_like(hard))
        return loss, metrics | {name: Mean.of(value, mask) for name, (_, value) in terms.items()}


def with_blocks(
    apply: Apply, last: int, params: Params, *inputs: Any, **options: Any
) -> tuple[jax.Array, list[jax.Array]]:
    """``apply(params, *inputs, **options)`` and the outputs ``[B, N, D]`` of its ``last`` blocks, first block first."""
    if not last:
        return apply(params, *inputs, **options), []
    out, state = apply(params, *inputs, **options, mutable=["features"])
    found = flatten_dict(state["features"])
    order = sorted(found, key=lambda path: [int(match[2]) for match in map(LAYER.match, path) if match])
    return out, [found[path] for path in order][-last:]


def divergence(student: Array, teacher: Array, temperature: float, output_activation: OutputActivation) -> jax.Array:
    """``T^2 KL(teacher || student)`` of logits ``[B, C]`` at temperature T, float32 ``[B]``.

    With "sigmoid" every class is a distribution of its own, over yes and no: logits z and 0.
    """
    if output_activation == "softmax":
        return losses.logit_distillation(student, teacher, temperature=temperature)
    yes_no = [jnp.stack([z, jnp.zeros_like(z)], -1) for z in map(jnp.asarray, (student, teacher))]
    return jnp.sum(losses.logit_distillation(*yes_no, temperature=temperature), -1)


def distance(student: list[jax.Array], teacher: list[jax.Array]) -> jax.Array:
    """Mean square difference of block outputs ``[B, N, D]`` over blocks, tokens and channels, float32 ``[B]``."""
    wide = [(s.astype(jnp.float32), t.astype(jnp.float32)) for s, t in zip(student, teacher, strict=True)]
    return sum((jnp.mean(jnp.square(s - t), (1, 2)) for s, t in wide), jnp.zeros(())) / len(wide)
