"""From batches on the devices to arrays on every host: what evaluators share that need whole data sets at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from vit_jax.evals.base import DataInfo
from vit_jax.types import Batch, UserError

Run = Callable[[Batch], dict[str, jax.Array]]


def gather(run: Run, batches: Iterable[Batch]) -> Iterator[tuple[Batch, dict[str, np.ndarray]]]:
    """Each batch with what ``run`` makes of its valid rows.

    A result is read one batch late: the devices compute while the host waits.

    Args:
      run: batch -> arrays ``[B, ...]`` that every host holds in full, ``mask`` bool[B] among them.
      batches: on the devices.

    Yields:
      The batch, and on the host the rows of each array where the mask is True; ``row`` int64 says which those are.
    """
    pending = None
    for batch in batches:
        result = run(batch)
        if pending is not None:
            yield pending[0], _valid(pending[1])
        pending = batch, result
    if pending is not None:
        yield pending[0], _valid(pending[1])


def _valid(result: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    host = jax.device_get(result)
    rows = np.flatnonzero(host.pop("mask"))
    return {"row": rows, **{k: v[rows] for k, v in host.items()}}


def concatenate(parts: Iterable[dict[str, np.ndarray]], what: str = "evaluate") -> dict[str, np.ndarray]:
    """The arrays of all parts, one after the other.

    Raises:
      UserError: they hold no example.
    """
    parts = list(parts)
    if not sum(len(p["row"]) for p in parts):
        raise UserError(f"there is nothing to {what}: the data holds no example; check the path and split.")
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def encoder_of(info: DataInfo, who: str) -> Any:
    """The run's text codec (``vit_jax.data.text.TextCodec``).

    Raises:
      UserError: the run has no texts.
    """
    if (encoder := info.encoder) is None:
        raise UserError(f"the evaluator {who!r} needs a model of images and texts; set data.text, or leave it out.")
    return encoder
