"""Programs and weights for others: a checkpoint in a form that runs without this package."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

from vit_jax.config import lookup
from vit_jax.export import onnx, stablehlo, weights
from vit_jax.export.base import Exported, Loaded, destination
from vit_jax.types import UsageError

__all__ = ["FORMATS", "Exported", "check", "export"]

FORMATS: dict[str, Callable[[Loaded, pathlib.Path], Exported]] = {
    "stablehlo": stablehlo.write,
    "onnx": onnx.write,
    "safetensors": weights.write,
}
"""By name: ``(what is exported, new folder) -> what was written``."""


def check(to: str, out: str | os.PathLike[str], int8: bool = False) -> pathlib.Path:
    """The folder ``out``, before anything is loaded.

    Raises:
      UsageError: no such format, with the nearest; int8 in another than ONNX.
      UserError: ``out`` exists.
    """
    lookup(FORMATS, to, "format")
    if int8 and to != "onnx":
        raise UsageError(f"--int8 is for --to onnx, whose runtimes have products in int8; leave it out of --to {to}.")
    return destination(out)


def export(loaded: Loaded, to: str, out: str | os.PathLike[str], int8: bool = False) -> Exported:
    """Writes the folder ``out``, whole or not at all, in the format ``to``; ``int8`` quantises an ONNX program.

    Raises:
      UserError: see :func:`check`; the format cannot express the model; a package is missing; the result differs.
    """
    folder = check(to, out, int8)
    return onnx.write(loaded, folder, quantise=True) if int8 else FORMATS[to](loaded, folder)
