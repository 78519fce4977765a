"""Evaluators without a run."""

import dataclasses
from typing import Any

import numpy as np

from vit_jax.evals import EvalContext
from vit_jax.models import ImageModel
from vit_jax.report.contact_sheet import Mistakes

PROGRAMS: dict[Any, Any] = {}
"""What the evaluators of a test module have compiled."""


def score(
    evaluator: Any,
    apply: Any,
    params: Any,
    batches: Any,
    info: Any,
    objective: Any = None,
    *,
    train: Any = (),
    model: Any = None,
) -> Any:
    """What ``evaluator`` finds for the model ``apply(params, ...)`` on prepared batches, fitted to ``train``."""
    parts = {"val": batches, "train": train}
    passed: dict[str, list[Any]] = {}
    names = tuple(getattr(info, "class_names", ()))

    def read(split: Any, _: Any, rows: Any = None) -> Any:
        if rows is None:
            passed[split] = []
            for batch in parts[split]:
                passed[split].append(batch)
                yield batch
            return
        whole = [{k: np.asarray(v)[np.asarray(b["mask"])] for k, v in b.items()} for b in passed[split]]
        yield {k: np.concatenate([b[k] for b in whole])[rows] for k in whole[0]}

    return evaluator(EvalContext(model or ImageModel(), apply, params, objective, info, names, read, PROGRAMS))


def pictured(report: Any) -> Any:
    """The report of a fake model, whose images are mere vectors, with pixels in their place, as real ones have."""
    rows = [row._replace(image=np.full((2, 2, 3), i, np.float32)) for i, row in enumerate(report.mistakes.rows)]
    return dataclasses.replace(report, mistakes=Mistakes(rows))
