"""Which hosts a run has: what the environment says, in variables of JAX or of a cluster that JAX knows."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

from vit_jax.types import UsageError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""Where the hosts meet (an address of the first, and a port), how many they are, and which one this is, from 0."""
REMEDY = f"set {ADDRESS}=HOST:PORT, {COUNT} and {INDEX} on every host"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Hosts that are to be one run.

    Attributes:
      address: name or number of the first host, as the others reach it.
      port: of the first host, where the others come to.
      count: number of hosts.
      index: number of this one, from 0.
      devices: numbers of the accelerators that are this process's own; None for all of the machine.
    """

    address: str
    port: int
    count: int
    index: int
    devices: tuple[int, ...] | None = None


def described(seconds: float, environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """What the environment describes; None where that is one process.

    A TPU pod, GKE, SLURM, Open MPI and an indexed job of Kubernetes are recognised; the variables of JAX go before.

    Args:
      seconds: how long to wait for the name of the first host to become known.
      environment: where the variables are looked up that are JAX's own.

    Raises:
      UsageError: half a description, or a wrong one.
    """
    given = {name: value for name in (ADDRESS, COUNT, INDEX) if (value := environment.get(name, "").strip())}
    count = _number(given, COUNT, 1)
    index = _number(given, INDEX, 0)
    if count == 1 and index in (0, None):
        return None
    found: dict[str, Any] = {}
    if len(given) < 3 and (known := _known()):
        found = _asked(known, given, seconds)
        if found[COUNT] == 1 and not given:
            return None
    if not (given or found):
        return None
    found |= {k: v for k, v in {ADDRESS: given.get(ADDRESS), COUNT: count, INDEX: index}.items() if v is not None}
    if missing := [name for name in (ADDRESS, COUNT, INDEX) if found.get(name) is None]:
        raise UsageError(f"{', '.join(given)} without {' and '.join(missing)}: {REMEDY}, or none of them for one host.")
    if not 0 <= found[INDEX] < found[COUNT]:
        raise UsageError(f"{INDEX}={found[INDEX]} is no number of {found[COUNT]} hosts; give 0 to {found[COUNT] - 1}.")
    return Cluster(*_address(found[ADDRESS]), found[COUNT], found[INDEX], found.get("devices"))


def _number(given: Mapping[str, str], name: str, least: int) -> int | None:
    if (text := given.get(name)) is None:
        return None
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < least:
        raise UsageError(f"{name}={text[:40]!r} is no number of {'hosts' if least else 'a host'}; {REMEDY}.")
    return int(text)


def _address(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.%\w]+\]|[^\s:/\[\]]+):(\d{1,5})", text)
    if not match or not 0 < int(match[2]) < 2**16:
        raise UsageError(f"{ADDRESS}={text[:80]!r} is no HOST:PORT of the first host, such as 10.0.0.1:1234.")
    return match[1].strip("[]"), int(match[2])


def _known() -> Any:
    """The cluster in which JAX believes to be, None for none of those that it knows.

    A pod of Kubernetes is one host unless its job numbers it: without, nothing says which others there would be.
    """
    from jax._src import clusters  # JAX has no public way to ask without joining

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that a single pod of Kubernetes does not need
        for kind in clusters.ClusterEnv._cluster_types:
            numbered = kind.__name__ != "K8sCluster" or "JOB_COMPLETION_INDEX" in os.environ
            if numbered and not kind.opt_in_only_method and _answer(kind, kind.is_env_present):
                return kind
    return None


def _asked(kind: Any, given: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """What a cluster says of itself, as far as it was not ``given``."""
    found: dict[str, Any] = {}
    if COUNT not in given:
        found[COUNT] = _answer(kind, kind.get_process_count)
        if found[COUNT] == 1:  # there is nobody to meet
            return found
    if INDEX not in given:
        found[INDEX] = _answer(kind, kind.get_process_id)
    if ADDRESS not in given:
        port = os.environ.get("JAX_COORDINATOR_PORT")
        found[ADDRESS] = _answer(kind, kind.get_coordinator_address, int(seconds), port)
    own = os.environ.get("JAX_LOCAL_DEVICE_IDS")  # which goes before
    local = None if own or "tpu" in kind.name else _answer(kind, kind.get_local_process_id)
    return found if local is None else found | {"devices": (local,)}


def _answer(kind: Any, question: Any, *about: Any) -> Any:
    try:
        return question(*about)
    except Exception as e:  # variables that are missing or no numbers, services that do not answer
        reason = (str(e) or type(e).__name__).splitlines()[0][:160]
        what = f"{kind.__name__} of JAX does not tell who the hosts are"
        raise UsageError(f"{what} ({type(e).__name__}: {reason}); {REMEDY}.") from e
