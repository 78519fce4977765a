"""Self-distillation of two views with a momentum teacher and a centre (DINO, Caron et al. 2021, arXiv:2104.14294)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vit_jax.metrics import Mean
from vit_jax.objectives import PerExample


@dataclasses.dataclass(frozen=True)
class SelfDistill(PerExample):
    """Cross-entropy between a teacher's view and the student's other view, both ways (Algorithm 1).

    Attributes:
      dim: outputs of a fixed random head.
      student_temperature: divides the student's logits.
      teacher_temperature: divides the teacher's centred logits.
      momentum: of the teacher's parameters.
      centre_momentum: of the mean of the teacher's logits.
    """

    dim: int = 16
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    momentum: float = 0.9
    centre_momentum: float = 0.9
    views: ClassVar[int] = 2
    state_metrics: ClassVar[tuple[str, ...]] = ("centre",)

    def fit_model(self, model, info):
        return model.clone(num_classes=0)

    def head(self, pooled):
        return pooled @ jax.random.normal(jax.random.key(0), (pooled.shape[-1], self.dim))

    def init_state(self, params):
        return {"teacher": jax.tree.map(jnp.copy, params), "centre": jnp.zeros(self.dim)}

    def bind(self, frozen, state):
        return Bound(self, state)

    def update_state(self, state, params, metrics):
        follow = lambda m, old, new: m * old + (1 - m) * new  # noqa: E731
        return {
            "teacher": jax.tree.map(lambda a, b: follow(self.momentum, a, b), state["teacher"], params),
            "centre": follow(self.centre_momentum, state["centre"], metrics["centre"].value()),
        }

    def per_example(self, apply, params, batch, rngs, *, train):
        raise AssertionError("it has no loss without its teacher")


@dataclasses.dataclass(frozen=True)
class Bound(PerExample):
    """:class:`SelfDistill` with its state at hand."""

    objective: SelfDistill
    state: Any

    def per_example(self, apply, params, batch, rngs, *, train):
        o, views = self.objective, batch["image"]
        student = [o.head(apply(params, v, train=True, rngs=rngs)) / o.student_temperature for v in views]
        teacher = jax.lax.stop_gradient([o.head(apply(self.state["teacher"], v, train=False)) for v in views])
        target = [jax.nn.softmax((t - self.state["centre"][None]) / o.teacher_temperature) for t in teacher]
        cross = lambda t, s: -jnp.sum(t * jax.nn.log_softmax(s), -1)  # noqa: E731
        losses = (cross(target[0], student[1]) + cross(target[1], student[0])) / 2
        rows = batch["mask"].astype(jnp.float32)[:, None]
        seen = Mean(jnp.sum((teacher[0] + teacher[1]) / 2 * rows, 0), jnp.sum(rows))
        return losses, {"centre": seen}
