"""How long a train step takes to trace, to lower and to compile, each time in a new process."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.bench import sides, steps
from vit_jax.io import jsonfile
from vit_jax.models.describe import build, describe

STAGES = ("trace", "lower", "compile")


def compare(
    name: str, dtype: str, batch: int, size: int, *, layers: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """Measures a model at several depths, unrolled and as a loop, without and with the program in the cache.

    Args:
      name: of the model.
      dtype: of the computation.
      batch: images a step.
      size: side of the image, in pixels.
      layers: numbers of blocks.
      rounds: how often, with a new cache each time.

    Returns:
      A row for each: seconds of each stage and of all together, medians, the least and the most of all together, and
      how many times those of the first number of layers that is.

    Raises:
      UserError: the model does not classify images, or its blocks do not fit into a loop.
    """
    rows = []
    for scan in (False, True):
        first: dict[str, float] = {}
        for count in layers:
            model = describe(steps.classifier("compile", name, dtype=dtype, scan=scan, depth=count))
            request = {"model": model, "batch": batch, "size": size}
            taken: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
            for _ in range(rounds):
                with tempfile.TemporaryDirectory() as cache:
                    for runs in taken.values():
                        runs.append(_fresh(request | {"cache": cache}))
            for cache, runs in taken.items():
                stages = {f"{stage} s": float(np.median([run[stage] for run in runs])) for stage in STAGES}
                totals = [sum(run[stage] for stage in STAGES) for run in runs]
                total = float(np.median(totals))
                rows.append({
                    "blocks": "scan" if scan else "unrolled", "layers": count, "cache": cache, **stages,
                    "all s": total, "all s (least)": min(totals), "all s (most)": max(totals),
                    f"times {layers[0]} layers": total / first.setdefault(cache, total),
                    "core s": float(np.median([run["work"] for run in runs])),
                })  # fmt: skip
    return rows


def _fresh(request: dict[str, Any]) -> dict[str, float]:
    """:func:`measure` in a new process."""
    side = sides.Side([sys.executable, "-m", __name__, json.dumps(request)])
    try:
        found: dict[str, float] = side.answer()
    finally:
        side.close()
    return found


def measure(model: dict[str, Any], batch: int, size: int) -> dict[str, float]:
    """Seconds of each stage, and the work of all cores.

    Args:
      model: as plain data.
      batch: images a step.
      size: side of the image, in pixels.
    """
    built = build(model)
    images, labels = jax.eval_shape(lambda: steps.inputs(built, batch, size))
    state = jax.eval_shape(lambda x: steps.initial("train", built, x), images)
    jax.devices()  # starting the backend is no compilation
    found, work = {}, time.process_time()
    stage: Any = steps.program("train", built)
    for name, args in (("trace", (state, images, labels)), ("lower", ()), ("compile", ())):
        start = time.perf_counter()
        stage = getattr(stage, name)(*args)
        found[name] = time.perf_counter() - start
    return {**found, "work": time.process_time() - work}


def main(argument: str) -> None:
    """Answers with what ``argument`` asks for: arguments of :func:`measure`, and the folder of cached programs."""
    say, request = sides.answering(), jsonfile.loads(argument)
    jax.config.update("jax_compilation_cache_dir", request.pop("cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    say(measure(**request))


if __name__ == "__main__":
    main(sys.argv[1])
