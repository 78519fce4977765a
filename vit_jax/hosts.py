"""The processes of one run, called hosts: which one this is, and what they agree upon outside of compiled steps.

They meet in the key-value store of JAX's distributed service, which needs no device: it works before the first
computation, where the devices disagree, and with a time limit. JAX has no public name for that store.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import distributed

from vit_jax.types import Stopped, UserError

RESUME = Stopped.status
"""Exit status of a run that stopped and that the same command goes on with: launchers restart on it."""
PATIENCE = 300.0
"""Seconds that hosts wait for each other where nothing else is said: one may have a slow disk to read from."""
COMPILING = 3600.0
"""Seconds that they wait for each other's compiler."""
ASKING = 200
"""Milliseconds in which the store answers for a host that came, also after the time in which others did not."""

_calls: collections.Counter[str] = collections.Counter()


def joined() -> bool:
    """Whether this process has met others, as :mod:`vit_jax.launch.runtime` does it."""
    return _client() is not None


def index() -> int:
    """Number of this host, from 0; devices are not touched where hosts were joined."""
    return _state().process_id if joined() else jax.process_index()


def count() -> int:
    """How many hosts there are."""
    return _state().num_processes if joined() else jax.process_count()


def first() -> bool:
    """Whether this is the host that writes and speaks for all."""
    return index() == 0


def name(host: int | None = None) -> str:
    """What people call a host, counted from 1: ``host 3 of 8``; without a number, this one."""
    return f"host {(index() if host is None else host) + 1} of {count()}"


def together(run: jax.stages.Wrapped) -> Callable[..., Any]:
    """``run``, a jitted function, that on several hosts all have compiled before any calls it.

    Who compiles longer would leave the others waiting in their first exchange, for which CPUs have half a minute and no
    setting (JAX issue 40831).
    """
    if count() == 1:
        return run
    compiled: dict[Any, Callable[..., Any]] = {}

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        key = structure, *((jnp.shape(x), jnp.result_type(x), getattr(x, "sharding", None)) for x in leaves)
        if key not in compiled:
            compiled[key] = run.lower(*args).compile()
            barrier("the compiled program", COMPILING)
        return compiled[key](*args)

    return call


def share(what: str, text: str, seconds: float = PATIENCE) -> list[str]:
    """Every host's ``text``, in their order, once all of them called this for the same thing.

    Args:
      what: what is shared, as a sentence names it: "the configuration". The n-th call of a name meets the n-th of the
        others.
      text: what this host has to say.
      seconds: how long to wait for the others.

    Raises:
      UserError: some host did not come in time; it names them.
    """
    if count() == 1:
        return [text]
    client, end = _client(), time.monotonic() + seconds
    _calls[what] += 1
    where = f"vit_jax/{what}/{_calls[what]}/"
    texts, silent = [], []
    try:
        client.key_value_set_bytes(f"{where}{index()}", text.encode("utf-8", "surrogatepass"))
        for host in range(count()):
            if host == index():
                texts.append(text)
                continue
            left = max(ASKING, int(1000 * (end - time.monotonic())))
            try:
                found = client.blocking_key_value_get_bytes(f"{where}{host}", left)
                texts.append(found.decode("utf-8", "surrogatepass"))
            except jax.errors.JaxRuntimeError as e:
                if "DEADLINE_EXCEEDED" not in str(e):
                    raise
                silent.append(name(host))
    except jax.errors.JaxRuntimeError as e:
        raise UserError(f"{name()} cannot share {what} with the others: {str(e).splitlines()[0]}") from e
    if silent:
        raise UserError(
            f"{', '.join(silent)} did not come within {seconds:.0f} s to share {what}; look at the end of what "
            f"{'it' if len(silent) == 1 else 'they'} printed."
        )
    if _calls[what] > 1:  # whoever came here has read all of the round before
        client.key_value_delete(f"vit_jax/{what}/{_calls[what] - 1}/{index()}")
    return texts


def barrier(what: str, seconds: float = PATIENCE) -> None:
    """Returns once every host called it for the same thing; raises as :func:`share` does."""
    share(what, "", seconds)


def _state() -> Any:
    return distributed.global_state


def _client() -> Any:
    return _state().client
