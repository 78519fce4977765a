"""Programs and weights for others: a checkpoint in a form that runs without this package."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

from vit_jax.config import lookup
from vit_jax.export import onnx, stablehlo, weights
from vit_jax.export.base import Exported, destination
from vit_jax.predict import Predictor

__all__ = ["FORMATS", "Exported", "check", "export"]

FORMATS: dict[str, Callable[[Predictor, pathlib.Path], Exported]] = {
    "stablehlo": stablehlo.write,
    "onnx": onnx.write,
    "safetensors": weights.write,
}
"""By name: ``(predictor, new folder) -> what was written``."""


def check(to: str, out: str | os.PathLike[str]) -> pathlib.Path:
    """The folder ``out``, before anything is loaded.

    Raises:
      UsageError: no such format, with the nearest.
      UserError: ``out`` exists.
    """
    lookup(FORMATS, to, "format")
    return destination(out)


def export(predictor: Predictor, to: str, out: str | os.PathLike[str]) -> Exported:
    """Writes the folder ``out``, whole or not at all, in the format ``to``.

    Raises:
      UserError: see :func:`check`; the format cannot express the model; a package is missing; the result differs.
    """
    folder = check(to, out)
    return FORMATS[to](predictor, folder)
