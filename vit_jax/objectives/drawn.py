"""Another form of the model at every step: FlexiViT's patch sizes, stitches, EViT's shares of tokens.

Forms have the same parameters (:meth:`vit_jax.models.Model.forms`), and one set of them learns to be all, or the first.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import config
from vit_jax.checks import Range
from vit_jax.models import Model, ModelFn
from vit_jax.objectives.base import Apply, Metrics, Objective, Rngs
from vit_jax.objectives.classify import Classify
from vit_jax.objectives.coca import CoCa
from vit_jax.objectives.contrast import Contrast
from vit_jax.objectives.distill import Distill
from vit_jax.objectives.hierarchical import Hierarchical
from vit_jax.types import Batch, OutputActivation, Params, UserError

DRAWN = {
    "classify": Classify,
    "contrast": Contrast,
    "coca": CoCa,
    "distill": Distill,
    "hierarchical": Hierarchical,
}
STREAM = "form"
"""Name of the random stream that says which form a step trains."""


@dataclasses.dataclass(frozen=True)
class OfForms(Objective):
    """An objective on one form of the model at each step; evaluated, on the model as it is.

    A step holds loss and gradient of every form and runs one of them: it takes the time and memory of one, and as many
    times as long to compile.

    Attributes:
      objective: what is minimised.
    """

    objective: Annotated[Objective, config.Choice(DRAWN, Objective)] = Classify()

    @property
    def min_batch_size(self) -> int:  # type: ignore[override]
        return self.objective.min_batch_size

    @property
    def views(self) -> int:  # type: ignore[override]
        return self.objective.views

    @property
    def rng_streams(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.objective.rng_streams

    @property
    def state_metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.objective.state_metrics

    @property
    def output_activation(self) -> OutputActivation | None:  # type: ignore[override]
        return self.objective.output_activation

    def __call__(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, *, train: bool
    ) -> tuple[jax.Array, Metrics]:
        if not train:
            return self.objective(apply, params, batch, rngs, train=False)
        return self._one(lambda form, rest: self.objective(form, params, batch, rest, train=True), apply, rngs)

    def value_and_grad(
        self, apply: Apply, params: Params, batch: Batch, rngs: Rngs, micro: int = 1
    ) -> tuple[tuple[jax.Array, Metrics], Params]:
        run = lambda form, rest: self.objective.value_and_grad(form, params, batch, rest, micro)  # noqa: E731
        return self._one(run, apply, rngs)

    @abc.abstractmethod
    def form(self, count: int, rngs: Rngs) -> jax.Array:
        """Which of ``count`` forms a step trains, int32."""

    def _one(self, run: Callable[[Apply, Rngs], Any], apply: Apply, rngs: Rngs) -> Any:
        """``run`` of the form of this step.

        Raises:
          UserError: the model has but one form.
        """
        assert isinstance(apply, ModelFn), "a function of parameters has no forms"
        assert isinstance(apply.model, Model)
        forms = list(apply.model.forms().values())
        if not forms:
            raise UserError(
                "this objective trains another form of the model at each step, and this one has no other; give a ViT "
                "several patches, --config.model.patches='(8, 16)', or leave the objective that is inside."
            )
        rest = {name: key for name, key in rngs.items() if name != STREAM}
        branches = [functools.partial(run, dataclasses.replace(apply, model=form), rest) for form in forms]
        return jax.lax.switch(self.form(len(forms), rngs), branches)

    def fit_model(self, model: nn.Module, info: Any) -> nn.Module:
        """As the objective has it."""
        return self.objective.fit_model(model, info)

    def frozen_inputs(self, load: Callable[[Any], Any]) -> Any:
        return self.objective.frozen_inputs(load)

    def init_state(self, params: Params) -> Any:
        return self.objective.init_state(params)

    def bind(self, frozen: Any, state: Any) -> Objective:
        return dataclasses.replace(self, objective=self.objective.bind(frozen, state))

    def update_state(self, state: Any, params: Params, metrics: Metrics) -> Any:
        return self.objective.update_state(state, params, metrics)


@dataclasses.dataclass(frozen=True)
class Drawn(OfForms):
    """``E_f loss(f)`` over the forms f of a model, each as likely, by one f for the whole batch of a step.

    So Beyer et al. 2023 train patch sizes (arXiv:2212.08013, section 3.3), and Pan et al. 2023 stitches
    (arXiv:2302.06586, section 3.3). The draw is a function of seed and step, as all that is random, so that a resumed
    run draws the same.
    """

    @property
    def rng_streams(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.objective.rng_streams, STREAM)

    def form(self, count: int, rngs: Rngs) -> jax.Array:
        return jax.random.randint(rngs[STREAM], (), 0, count)


@dataclasses.dataclass(frozen=True)
class Annealed(OfForms):
    """The last form of a model at first, then those before it, and from ``end`` on the first, which is evaluated.

    So Liang et al. 2022 lead a ViT from all tokens to the share that it is to keep (arXiv:2202.07800): along half a
    cosine, at step t the form nearest to ``(n - 1) (1 + cos(pi (t - begin) / (end - begin))) / 2`` of n. Their share
    changes at every step; here it has as many values as the model has forms, each a program of its own. The steps that
    were made are part of the state, so that a resumed run goes on where it was.

    Attributes:
      begin: the last step of the last form alone.
      end: the first step from which on the first form alone is trained.
    """

    begin: Annotated[int, Range(0, config.MAX_STEPS)] = 0
    end: Annotated[int, Range(1, config.MAX_STEPS)] = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end <= self.begin:
            raise UserError(f"end={self.end} is not after begin={self.begin}; give steps in their order.")

    def form(self, count: int, rngs: Rngs) -> jax.Array:
        raise AssertionError("it is trained as what bind() returns, which knows the step")

    def init_state(self, params: Params) -> Any:
        return {"step": jnp.zeros((), jnp.int32), "inner": self.objective.init_state(params)}

    def bind(self, frozen: Any, state: Any) -> Objective:
        return AnnealedAt(self.objective.bind(frozen, state["inner"]), self, state["step"])

    def update_state(self, state: Any, params: Params, metrics: Metrics) -> Any:
        return {"step": state["step"] + 1, "inner": self.objective.update_state(state["inner"], params, metrics)}


@dataclasses.dataclass(frozen=True)
class AnnealedAt(OfForms):
    """:class:`Annealed` at a step.

    Attributes:
      schedule: its steps.
      step: int32.
    """

    schedule: Annealed = Annealed()
    step: Any = 0

    def form(self, count: int, rngs: Rngs) -> jax.Array:
        begin, end = self.schedule.begin, self.schedule.end
        share = jnp.clip((self.step - begin).astype(jnp.float32) / (end - begin), 0, 1)
        return jnp.round((count - 1) * (1 + jnp.cos(jnp.pi * share)) / 2).astype(jnp.int32)
