"""How lazy the neurons are: the share of hidden units of each MLP that are not 0 (Li et al. 2022, arXiv:2210.06313)."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import NamedSharding

from vit_jax.evals.base import EvalContext, Evaluator, Report
from vit_jax.evals.gather import concatenate, gather
from vit_jax.objectives import activity
from vit_jax.objectives.base import Apply
from vit_jax.report import plots
from vit_jax.sharding import replicated_like
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

        def run(batch: Batch) -> dict[str, jax.Array]:
            shares = context.program(_shares, replicated_like(batch["image"]))
            return shares(context.params, batch["image"], batch["mask"])

        whole = concatenate(found for _, found in gather(run, context.batches()))
        whole.pop("row")
        shares = {
            name: float(v.mean(dtype=np.float64)) for name, v in sorted(whole.items(), key=lambda kv: _order(kv[0]))
        }
        return ActivityReport(
            {"active": float(np.mean(list(shares.values())))} | {f"active/{k}": v for k, v in shares.items()}
        )


def _shares(apply: Apply, replicated: NamedSharding | None) -> Any:
    """Jitted (params, image, mask) -> share float32[B] per MLP, and mask, on every host in full."""

    def run(params: Params, image: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        return {**activity.shares(apply, mask, params, image, train=False, method="embed_image")[1], "mask": mask}

    return jax.jit(run, out_shardings=replicated)


def _order(name: str) -> list[Any]:
    """Sorts ``block_10`` after ``block_9``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
