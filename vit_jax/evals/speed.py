"""How fast a model is, beside how good: images a second, the reading of data left aside."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated, Any, ClassVar

import jax
import numpy as np

from vit_jax import hosts
from vit_jax.checks import Range
from vit_jax.evals.base import EvalContext, Evaluator, Report
from vit_jax.models import ImageModel
from vit_jax.objectives.base import Apply
from vit_jax.types import Batch, Params, UserError


@dataclasses.dataclass(frozen=True)
class Speed(Evaluator):
    """Images a second that all devices together compute outputs of, embeddings for an image-text model.

    One batch that lies on the devices is computed again and again; neither reading nor compiling is in it, see
    ``vit_jax bench input`` for the former. Whatever else the machine does meanwhile is: two models are compared with
    ``vit_jax bench``, which times them in turn.

    Attributes:
      passes: how often the batch is timed; the median counts.
    """

    passes: Annotated[int, Range(1, 1000)] = 10
    metrics: ClassVar[tuple[str, ...]] = ("images_per_second",)

    def __call__(self, context: EvalContext) -> Report:
        """Reads ``image`` float[B,S,S,3] of the first batch.

        Raises:
          UserError: there is no batch.
        """
        batch = next(iter(context.batches()), None)
        if batch is None:
            raise UserError("the evaluator 'speed' computes the first batch, and there is none.")
        run = context.program(_outputs, isinstance(context.model, ImageModel))
        jax.block_until_ready(run(context.params, batch))
        seconds = []
        for _ in range(self.passes):
            start = time.perf_counter()
            jax.block_until_ready(run(context.params, batch))
            seconds.append(time.perf_counter() - start)
        return Report({"images_per_second": len(batch["mask"]) / float(np.median(seconds))})


def _outputs(apply: Apply, classifies: bool) -> Any:
    """(params, batch) -> outputs of the images."""

    def run(params: Params, batch: Batch) -> jax.Array:
        return apply(params, batch["image"], train=False, method=None if classifies else "embed_image")

    return hosts.together(jax.jit(run))
