"""A side of ``vit_jax bench forward`` and ``train`` as a program: it makes a model and serves its steps."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from typing import Any, Literal

import jax

from vit_jax.bench import steps, timm
from vit_jax.bench.plain import twin
from vit_jax.bench.sides import serve
from vit_jax.bench.timing import cores
from vit_jax.io import jsonfile
from vit_jax.models.describe import build


@dataclasses.dataclass(frozen=True)
class Rival:
    """What a side computes.

    Attributes:
      by: whose model it is: this package's, its twin of plain Flax layers, or timm's, as it is or compiled.
      kind: "forward", images to logits; "train", forward, backward and AdamW.
      model: this package's as plain data, or of timm's what its ``create_model`` takes.
      dtype: of the computation.
      batch: images a step.
      size: side of the image, in pixels.
    """

    by: Literal["vit_jax", "flax", "timm", "timm_compiled"]
    kind: steps.Kind
    model: dict[str, Any]
    dtype: str
    batch: int
    size: int

    def command(self) -> list[str]:
        """The program of :class:`vit_jax.bench.sides.Side`."""
        return [sys.executable, "-m", __name__, json.dumps(dataclasses.asdict(self))]

    def make(self) -> tuple[Callable[[], Any], Callable[[Any], Any], dict[str, Any]]:
        """What starts a step and what waits for it, and facts: how many parameters and threads there are.

        Raises:
          UserError: timm is not installed.
        """
        if self.by in ("timm", "timm_compiled"):
            compiled = self.by == "timm_compiled"
            run, facts = timm.candidate(self.kind, self.model, self.dtype, self.batch, self.size, compiled)
            return run, lambda _: None, facts
        model = build(self.model)
        if self.by == "flax":
            plain = twin(model)
            assert plain is not None, self.model
            model = plain.clone(dtype=self.dtype)
        run, parameters = steps.candidate(self.kind, model, self.batch, self.size)
        return run, jax.block_until_ready, {"parameters": parameters, "threads": cores()}


def main(argument: str) -> None:
    """Serves the rival that ``argument`` describes, as :meth:`Rival.command` writes it."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the sides share an accelerator's memory
    found: dict[str, Any] = {}

    def make() -> tuple[Callable[[], Any], Callable[[Any], Any]]:
        run, wait, facts = Rival(**jsonfile.loads(argument)).make()
        found.update(facts)
        return run, wait

    serve(make, lambda: found)


if __name__ == "__main__":
    main(sys.argv[1])
