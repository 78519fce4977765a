"""Settings of the whole process, made once by the commands that compute and never at import."""

from __future__ import annotations

import contextlib
import logging
import os
import socket

import jax

from vit_jax.io import cache
from vit_jax.launch import cluster, meeting, relay
from vit_jax.launch.cluster import Cluster
from vit_jax.launch.watch import SILENT, Watch

log = logging.getLogger(__name__)

PROGRAMS = 5 * 10**9
"""Bytes of compiled programs that are kept: those used longest ago make room."""
MEETING = 300.0
"""Seconds in which all hosts are to come: machines do not start at the same time."""


def setup() -> None:
    """Caches compiled programs.

    They lie in :func:`vit_jax.io.cache.folder`; ``JAX_COMPILATION_CACHE_DIR`` overrides it.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        programs = cache.folder("programs")
        jax.config.update("jax_compilation_cache_dir", str(programs))
        if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
            jax.config.update("jax_compilation_cache_max_size", PROGRAMS)
        cache.keep_paired(programs, "-cache", "-atime")  # else, as after a killed process, JAX keeps nothing more


def join(alone: bool = False) -> Watch | None:
    """Joins the other hosts where the environment describes some, before any device is touched; None where it does not.

    Args:
      alone: whether the first host is to do everything, with devices of its own, while the others only watch. Those of
        a TPU pod are all hosts' or nobody's: it then computes on its CPU.

    Raises:
      UserError: the description is wrong, or somebody does not come.
    """
    found = cluster.described(MEETING)
    if found is None:
        return None
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM, and nothing here asks it
    if found.index:
        peer, port = meeting.met(found, MEETING)
        peers, address = [peer], found.address
        if not os.environ.get("JAX_MTLS_CERT_FILE"):  # a certificate is for the name of the first host
            address, port = "127.0.0.1", relay.opened(found.address, port)
    else:
        address = meeting.bound(found) or "127.0.0.1"
        with meeting.listening(found) as server:
            peers = meeting.gathered(found, server, MEETING)
        port = _free_port(address)
        meeting.admit(peers, port)
    watch = Watch(found.index, found.count, peers)
    watch.start()
    if not alone:
        _join_jax(found, address, port)
    elif _of_a_pod() and "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")
        log.warning("Chips of a TPU pod work only together: this command computes on the CPU of the first host.")
    told = _Told(watch)
    if watch.index:
        logging.getLogger().handlers[:] = [told]
    else:
        logging.getLogger().addHandler(told)
    logging.captureWarnings(True)
    return watch


def part(watch: Watch) -> None:
    """Waits until all hosts are done, and leaves them."""
    watch.finish()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # of one that was killed after all had been done
        jax.distributed.shutdown()


def _of_a_pod() -> bool:
    from jax._src import cloud_tpu_init  # JAX has no public way to ask without starting the chips

    return bool(cloud_tpu_init.running_in_cloud_tpu_vm)


def _join_jax(found: Cluster, address: str, port: int) -> None:
    name = f"[{address}]" if ":" in address else address
    bind = f"{name}:{port}" if meeting.bound(found) else None
    jax.distributed.initialize(
        f"{name}:{port}",
        found.count,
        found.index,
        local_device_ids=found.devices,
        cluster_detection_method="deactivate",  # it was asked
        initialization_timeout=int(MEETING),
        coordinator_bind_address=bind or f"[::]:{port}",
        heartbeat_timeout_seconds=int(2 * SILENT),  # the watch notices before, and says more
        shutdown_timeout_seconds=10,
    )


def _free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as s:
        s.bind((address, 0))
        return int(s.getsockname()[1])


class _Told(logging.Handler):
    """Passes on what is logged: the first host says it, once."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(logging.WARNING)
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        self._watch.tell(record.getMessage())
