"""How lazy the neurons are: the share of hidden units of each MLP that are not 0 (Li et al. 2022, arXiv:2210.06313)."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any, ClassVar

import jax
import numpy as np

from vit_jax.evals.base import EvalContext, Evaluator, Report
from vit_jax.evals.gather import concatenate, gather
from vit_jax.objectives import activity
from vit_jax.objectives.base import Apply
from vit_jax.report import plots
from vit_jax.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class ActivityReport(Report):
    """Metrics ``active``, the mean over the MLPs, and ``active/block_0/mlp`` ... of each; drawn over the depth."""

    def draw(self, folder: pathlib.Path, class_names: tuple[str, ...]) -> None:
        """Writes ``activity.png``."""
        plots.activity({k.split("/", 1)[1]: v for k, v in self.metrics.items() if "/" in k}, folder / "activity.png")


@dataclasses.dataclass(frozen=True)
class Activity(Evaluator):
    """Mean over tokens and images of the share of hidden units that are not 0, per MLP of the image encoder.

    GELU is hardly ever 0: it reports some 100 %. ReLU and top-k are what this is for.
    """

    metrics: ClassVar[tuple[str, ...]] = ("active",)

    def __call__(self, context: EvalContext) -> ActivityReport:
        """Reads ``image`` and ``mask`` bool[B].

        Raises:
          UserError: no batch holds a valid example; the model has no MLP.
        """
        whole = concatenate(found for _, found in gather(context, _shares))
        whole.pop("row")
        shares = {
            name: float(v.mean(dtype=np.float64)) for name, v in sorted(whole.items(), key=lambda kv: _order(kv[0]))
        }
        return ActivityReport(
            {"active": float(np.mean(list(shares.values())))} | {f"active/{k}": v for k, v in shares.items()}
        )


def _shares(apply: Apply) -> Any:
    """(params, batch) -> share float32[B] per MLP."""

    def run(params: Params, batch: Batch) -> dict[str, jax.Array]:
        return activity.shares(apply, batch["mask"], params, batch["image"], train=False, method="embed_image")[1]

    return run


def _order(name: str) -> list[Any]:
    """Sorts ``block_10`` after ``block_9``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
