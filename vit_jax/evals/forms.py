"""Every form of a model: FlexiViT's patch sizes, the stitches of a stitchable network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np

from vit_jax import config
from vit_jax.evals.activity import Activity
from vit_jax.evals.base import EvalContext, Evaluator, Report, Split, combine, prefixed
from vit_jax.evals.caption import Caption
from vit_jax.evals.classify import Classify
from vit_jax.evals.probes import KNN, LinearProbe
from vit_jax.evals.retrieval import Retrieval
from vit_jax.evals.speed import Speed
from vit_jax.evals.zero_shot import ZeroShot
from vit_jax.models import Model, ModelFn
from vit_jax.objectives.base import Apply
from vit_jax.types import UserError

OF_ONE = {
    "classify": Classify,
    "retrieval": Retrieval,
    "caption": Caption,
    "zero_shot": ZeroShot,
    "linear_probe": LinearProbe,
    "knn": KNN,
    "activity": Activity,
    "speed": Speed,
}
"""Evaluators of one model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forms(Evaluator):
    """What an evaluator finds for each form of the model, ``patch_8/accuracy``, and the means, ``forms/accuracy``.

    Attributes:
      evaluator: what scores each.
    """

    evaluator: Annotated[Evaluator, config.Choice(OF_ONE, Evaluator)] = Classify()
    metrics: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluator.data is not None or self.evaluator.prefix is not None:
            raise UserError("data and prefix are fields of 'forms' itself, not of the evaluator it repeats.")

    @property
    def splits(self) -> tuple[Split, ...]:  # type: ignore[override]
        return self.evaluator.splits

    @property
    def reported(self) -> tuple[str, ...]:
        """The means over forms, whose names the model knows."""
        found = [f"forms/{metric}" for metric in self.evaluator.metrics]
        return tuple(f"{self.prefix}/{metric}" if self.prefix else metric for metric in found)

    def __call__(self, context: EvalContext) -> Report:
        """Reads the data once for each form.

        Raises:
          UserError: the model has but one.
        """
        forms: Mapping[str, ModelFn] = context.program(_forms)
        if not forms:
            raise UserError(
                "the evaluator 'forms' scores each form of a model, and this one has no other; leave it out, or give a "
                "ViT several patches."
            )
        one = lambda form: dataclasses.replace(context, model=form.model, apply=form, found={})  # noqa: E731
        found = {name: self.evaluator(one(form)) for name, form in forms.items()}
        whole = combine([prefixed(report, name) for name, report in found.items()])
        rows = [report.metrics for report in found.values()]
        means = {f"forms/{k}": float(np.mean([row[k] for row in rows])) for k in self.evaluator.metrics}
        return dataclasses.replace(whole, metrics=means | whole.metrics)


def _forms(apply: Apply) -> dict[str, ModelFn]:
    """Forms of the model as functions of its parameters."""
    assert isinstance(apply, ModelFn), "a function of parameters has no forms"
    assert isinstance(apply.model, Model)
    return {name: dataclasses.replace(apply, model=form) for name, form in apply.model.forms().items()}
