"""Another form of the model at every step: FlexiViT's patch sizes, the stitches of a stitchable network.

Forms have the same parameters (:meth:`vit_jax.models.Model.forms`), and one set of them learns to be all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax

from vit_jax import config
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
class Drawn(Objective):
    """``E_f loss(f)`` over the forms f of a model, each as likely, by one f for the whole batch of a step.

    So Beyer et al. 2023 train patch sizes (arXiv:2212.08013, section 3.3), and Pan et al. 2023 stitches
    (arXiv:2302.06586, section 3.3). The draw is a function of seed and step, as all that is random, so that a resumed
    run draws the same. A step holds loss and gradient of every form and runs one of them: it takes the time and memory
    of one, and as many times as long to compile. Evaluated, it is the objective on the model as it is.

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
        return (*self.objective.rng_streams, STREAM)

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

    def _one(self, run: Callable[[Apply, Rngs], Any], apply: Apply, rngs: Rngs) -> Any:
        """``run`` of the form that is drawn.

        Raises:
          UserError: the model has but one form.
        """
        assert isinstance(apply, ModelFn), "a function of parameters has no forms"
        assert isinstance(apply.model, Model)
        forms = list(apply.model.forms().values())
        if not forms:
            raise UserError(
                "objective='drawn' trains another form of the model at each step, and this one has no other; give a "
                "ViT several patches, --config.model.patches='(8, 16)', or leave the objective that is drawn for."
            )
        rest = {name: key for name, key in rngs.items() if name != STREAM}
        drawn = jax.random.randint(rngs[STREAM], (), 0, len(forms))
        branches = [functools.partial(run, dataclasses.replace(apply, model=form), rest) for form in forms]
        return jax.lax.switch(drawn, branches)

    def fit_model(self, model: nn.Module, info: Any) -> nn.Module:
        """As the objective has it."""
        return self.objective.fit_model(model, info)

    def frozen_inputs(self, load: Callable[[Any], Any]) -> Any:
        return self.objective.frozen_inputs(load)

    def init_state(self, params: Params) -> Any:
        return self.objective.init_state(params)

    def bind(self, frozen: Any, state: Any) -> Drawn:
        return dataclasses.replace(self, objective=self.objective.bind(frozen, state))

    def update_state(self, state: Any, params: Params, metrics: Metrics) -> Any:
        return self.objective.update_state(state, params, metrics)
