"""Which implementation of an operation runs: the named one, or the first of its table that supports the arguments."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vit_jax import config, sharding
from vit_jax.types import UserError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Attributes:
      run: the function; all implementations of an operation take the same arguments.
      unsupported_reason: called with what the operation is called with (shapes and types suffice), returns why this way
        is not taken, as the end of a sentence ("a block has 6 rows, not a multiple of 8"), or None if it may be.
      slower_reason: called like ``unsupported_reason``, returns why a later entry is faster, or None; a caller who
        names the implementation gets it.
      platform: "tpu", "gpu" or "cpu" for what is only considered there, unless named (to be compiled for elsewhere).
    """

    run: Callable[..., Any]
    unsupported_reason: Callable[..., str | None] = lambda *args, **kwargs: None
    slower_reason: Callable[..., str | None] = lambda *args, **kwargs: None
    platform: str | None = None


def other_gpu(capability: str) -> str | None:
    """Why a kernel for GPUs of this compute capability stands back on another GPU, or None."""
    if sharding.platform() != "gpu":
        return None
    found = getattr(jax.local_devices()[0], "compute_capability", capability)
    return None if found == capability else f"this GPU has compute capability {found}, the kernel is for {capability}"


def older_gpu(least: int) -> str | None:
    """Why what needs an NVIDIA GPU of this generation (8 for an A100) or a later one stands back here, or None."""
    if sharding.platform() != "gpu":
        return None
    found = str(getattr(jax.local_devices()[0], "compute_capability", least))
    generation = found.partition(".")[0]  # of other makers a name, such as gfx90a
    recent = generation.isdecimal() and int(generation) >= least
    return None if recent else f"this GPU has compute capability {found}, not {least}.0 or more"


def choose(op: str, table: Mapping[str, Implementation], name: str | None, *args: Any, **kwargs: Any) -> Any:
    """The ``run`` of the implementation ``name``, or of the first of this platform with neither reason against it.

    Who runs instead of whom, and why, is said once per reason.

    Raises:
      UserError: ``name`` is unknown or does not support the arguments, or none does.
    """
    if name is not None:
        chosen = config.lookup(table, name, f"implementation of {op}")
        if reason := chosen.unsupported_reason(*args, **kwargs):
            raise UserError(f"{name!r} does not run this {op}: {reason}; choose another implementation or none.")
        return chosen.run
    against: list[str] = []
    here = {k: c for k, c in table.items() if c.platform in (None, sharding.platform())}
    for key, candidate in here.items():
        reason = candidate.unsupported_reason(*args, **kwargs) or candidate.slower_reason(*args, **kwargs)
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
