"""How near doubled features are to those of an image of twice the side."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.evals.base import EvalContext, Evaluator, Report
from vit_jax.evals.gather import concatenate, gather
from vit_jax.layers.embed import along_both, resize_matrix
from vit_jax.models import Upsampler
from vit_jax.objectives.base import Apply
from vit_jax.objectives.upsample import cosines
from vit_jax.types import Batch, Params, UserError


@dataclasses.dataclass(frozen=True)
class Upsample(Evaluator):
    """Mean cosine of doubled features and those of twice the image, ``cosine``, over places, sizes and images.

    ``bilinear`` is that of small features which were resized, without any learning.
    """

    metrics: ClassVar[tuple[str, ...]] = ("cosine", "bilinear")

    def __call__(self, context: EvalContext) -> Report:
        """Reads ``image`` and ``mask`` bool[B].

        Raises:
          UserError: no batch holds a valid example; the model doubles no features.
        """
        if not isinstance(context.model, Upsampler):
            raise UserError(
                f"the evaluator 'upsample' scores what doubles features, and {type(context.model).__name__} does not; "
                "leave it out, or take model.name='lift'."
            )
        whole = concatenate(found for _, found in gather(context, _scorer))
        return Report({name: float(whole[name].mean(dtype=np.float64)) for name in self.metrics})


def _scorer(apply: Apply) -> Any:
    """(params, batch) -> mean cosines float32[B]."""

    def run(params: Params, batch: Batch) -> dict[str, jax.Array]:
        found, wanted, small = apply(params, batch["image"], train=False, method="doubled")
        mean = lambda grids: jnp.mean(jnp.stack([cosines(*pair) for pair in zip(grids, wanted, strict=True)]), axis=0)  # noqa: E731
        return {"cosine": mean(found), "bilinear": mean([bilinear(grid) for grid in small])}

    return run


def bilinear(grid: jax.Array) -> jax.Array:
    """``[B, h, w, D] -> [B, 2h, 2w, D]``, float32."""
    rows, columns = (resize_matrix(n, 2 * n) for n in grid.shape[1:3])
    return jax.vmap(lambda one: along_both(rows, columns, one))(grid.astype(jnp.float32))
