"""From batches on the devices to arrays on every host: what evaluators share that need whole data sets at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from vit_jax import hosts
from vit_jax.evals.base import DataInfo, EvalContext
from vit_jax.objectives.base import Apply
from vit_jax.sharding import replicated_like
from vit_jax.types import Batch, UserError

Make = Callable[..., Callable[..., dict[str, jax.Array]]]


def gather(
    context: EvalContext, make: Make, *static: Any, batches: Iterable[Batch] | None = None, inputs: tuple[Any, ...] = ()
) -> Iterator[tuple[Batch, dict[str, np.ndarray]]]:
    """Each batch with what a pure function of the model makes of its valid rows.

    It is compiled once for equal ``static``, and a result is read one batch late: the devices compute while the host
    waits.

    Args:
      context: of the evaluator.
      make: ``(apply, *static)`` -> function ``(params, batch, *inputs)`` -> arrays ``[B, ...]``.
      *static: hashable.
      batches: on the devices; None takes the validation part.
      inputs: further arrays.

    Yields:
      The batch, and in full on every host the rows of each array where ``mask`` is True; ``row`` int64 says which.
    """
    pending = None
    for batch in context.batches() if batches is None else batches:
        run = context.program(_jitted, make, static, replicated_like(batch["image"]))
        result = run(context.params, batch, *inputs)
        if pending is not None:
            yield pending[0], _valid(pending[1])
        pending = batch, result
    if pending is not None:
        yield pending[0], _valid(pending[1])


def _jitted(apply: Apply, make: Make, static: tuple[Any, ...], replicated: NamedSharding | None) -> Any:
    run = make(apply, *static)
    masked = lambda p, batch, *x: {**run(p, batch, *x), "mask": batch["mask"]}  # noqa: E731
    return hosts.together(jax.jit(masked, out_shardings=replicated))


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
        raise UserError(
            f"the evaluator {who!r} needs a model of images and texts; set data.text, put the "
            "tokenizer's files beside weights that came without them, or leave it out."
        )
    return encoder
