"""Which implementation of an operation runs: the named one, or the first of its table that does not refuse."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vit_jax import config
from vit_jax.types import UserError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Attributes:
      run: the function; all implementations of an operation take the same arguments.
      refuses: called with what the operation is called with (shapes and types suffice), returns why this way is not
        taken, as the end of a sentence ("a block has 6 rows, not a multiple of 8"), or None if it may be.
      unwise: the same for what would run but loses to a later entry; a caller who names the implementation gets it.
      platform: "tpu" or "gpu" for what is only considered there, unless named (to be compiled for elsewhere).
    """

    run: Callable[..., Any]
    refuses: Callable[..., str | None] = lambda *args, **kwargs: None
    unwise: Callable[..., str | None] = lambda *args, **kwargs: None
    platform: str | None = None


def unproved(unwise: Callable[..., str | None]) -> Callable[..., str | None]:
    """``unwise`` of an implementation that has never run on its hardware: only who names it gets it."""
    return lambda *args, **kwargs: unwise(*args, **kwargs) or "it has not run on this hardware yet, name it to use it"


def choose(op: str, table: Mapping[str, Implementation], name: str | None, *args: Any, **kwargs: Any) -> Any:
    """The ``run`` of the implementation ``name``, or of the first of this platform that neither refuses nor is unwise.

    Who runs instead of whom, and why, is said once per reason.

    Raises:
      UserError: ``name`` is unknown or refuses, or all refuse.
    """
    if name is not None:
        chosen = config.lookup(table, name, f"implementation of {op}")
        if reason := chosen.refuses(*args, **kwargs):
            raise UserError(f"{name!r} does not run this {op}: {reason}; choose another implementation or none.")
        return chosen.run
    against: list[str] = []
    here = {k: c for k, c in table.items() if c.platform in (None, jax.default_backend())}
    for key, candidate in here.items():
        reason = candidate.refuses(*args, **kwargs) or candidate.unwise(*args, **kwargs)
        if reason is None:
            if against:
                say(f"{op} runs as {key!r}; " + "; ".join(against) + ".")
            return candidate.run
        against.append(f"not {key!r}: {reason}")
    raise UserError(f"no implementation runs this {op}: {'; '.join(against)}.")


@functools.cache
def say(text: str) -> None:
    """Logs a sentence, once in the life of the process."""
    log.warning(text)
