"""Settings of the whole process, made once by the commands that compute and never at import."""

from __future__ import annotations

import os

import jax

from vit_jax.io import cache

PROGRAMS = 5 * 10**9
"""Bytes of compiled programs that are kept: those used longest ago make room."""


def setup() -> None:
    """Joins the other hosts where a cluster is described by the environment, and caches compiled programs.

    They lie in :func:`vit_jax.io.cache.folder`; ``JAX_COMPILATION_CACHE_DIR`` overrides it.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ or len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        jax.distributed.initialize()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        programs = cache.folder("programs")
        jax.config.update("jax_compilation_cache_dir", str(programs))
        if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
            jax.config.update("jax_compilation_cache_max_size", PROGRAMS)
        cache.keep_paired(programs, "-cache", "-atime")  # else, as after a killed process, JAX keeps nothing more
