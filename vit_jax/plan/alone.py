"""A program of its own: compiles kernels one by one for a TPU and prints the schedule that the compiler writes of each.

libtpu writes schedules only where it is told to before it is loaded, hence the process, which imports little.
:mod:`vit_jax.plan.schedule` starts it.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

from vit_jax.io import jsonfile, text

CALL = re.compile(r"entry bundle: %\S+ = custom-call\(")
"""In the schedule of a kernel; beside it stand those of copies that the compiler puts before it, and of the program."""


def main(where: str) -> None:
    """Reads ``{"topology", "options", "kernels"}`` from standard input; answers with a line of JSON for every kernel.

    A line is ``{"schedule": its text}`` or ``{"error": why there is none}``.

    Args:
      where: the folder into which libtpu writes.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    asked = jsonfile.loads(sys.stdin.buffer.read())
    from jax.experimental import topologies

    device = topologies.get_topology_desc(asked["topology"], platform="tpu", **asked["options"]).devices[0]
    for kernel in asked["kernels"]:
        try:
            compile_for(device, kernel)
            answer = {"schedule": written(pathlib.Path(where))}
        except Exception as e:  # whatever the compiler says of one kernel, the others are still asked for
            answer = {"error": str(e).split("\n", 1)[0][:200]}
        print(json.dumps(answer), file=answers, flush=True)


def compile_for(device: Any, kernel: Mapping[str, Any]) -> None:
    """Compiles one call: ``operands`` and ``results``, each a type and a shape, and its ``config``."""
    import jax

    place = jax.sharding.SingleDeviceSharding(device)
    operands = [jax.ShapeDtypeStruct(shape, kind, sharding=place) for kind, shape in kernel["operands"]]
    results = [jax.ShapeDtypeStruct(shape, kind) for kind, shape in kernel["results"]]
    options: dict[str, Any] = {"custom_call_api_version": 1, "legacy_backend_config": kernel["config"]}
    jax.jit(jax.ffi.ffi_call("tpu_custom_call", results, **options), out_shardings=place).lower(*operands).compile()


def written(where: pathlib.Path) -> str:
    """The schedule of a kernel among those that are in ``where``; the folder is empty afterwards.

    Raises:
      ValueError: there is none, or several are.
    """
    paths = list(where.iterdir())
    found = [text.decode(path.read_bytes()) for path in paths if path.name.endswith("-final_bundles.txt")]
    for path in paths:
        path.unlink()
    found = [schedule for schedule in found if CALL.search(schedule)]
    if len(found) != 1:
        raise ValueError(f"the compiler wrote {len(found)} schedules")
    return found[0]


if __name__ == "__main__":
    main(sys.argv[1])
