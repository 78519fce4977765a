"""What an exported program says of itself, the proof that it computes the same, and how it gets onto the disk."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

import vit_jax
from vit_jax.data.framing import Framing
from vit_jax.io import atomic, jsonfile
from vit_jax.predict import Predictor
from vit_jax.types import UsageError, UserError

ABOUT = "model.json"
FILE_SUFFIXES = (".onnx", ".stablehlo", ".mlir", ".safetensors", ".json")
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
"""Largest difference to the checkpoint that rounding explains, by compute type."""
KNOWN = 0.01
"""Largest difference where the program is known to compute something slightly else, and its user is told."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
      folder: where.
      signature: of the program, a line each.
      usage: how to load and run it, two lines of Python.
      difference: largest difference to the checkpoint's outputs that was measured, None where nothing ran.
      notes: one human-readable note per difference from the checkpoint.
    """

    folder: pathlib.Path
    signature: tuple[str, str]
    usage: tuple[str, str]
    difference: float | None = None
    notes: tuple[str, ...] = ()


def describe(predictor: Predictor) -> dict[str, Any]:
    """Plain data that a program travels with: class names, input, output, where it comes from."""
    side = predictor.pretrained.preprocess.host_canvas
    image = jax.ShapeDtypeStruct((1, side, side, 3), "uint8")
    width = jax.eval_shape(predictor.forward, predictor.params, image).shape[1]
    meaning = {"softmax": "softmax over class_names", "sigmoid": "sigmoid of each of class_names"}
    output = {"name": "probabilities", "meaning": meaning[predictor.pretrained.output_activation]}
    if not predictor.model.num_classes:
        output = {"name": "features", "meaning": "pooled features of a model without a head"}
    square = f"RGB, {_words(predictor.pretrained.preprocess.host_frame, side)}; all else is inside"
    return {
        "class_names": list(predictor.class_names),
        "input": {"name": "images", "meaning": square, "dtype": "uint8", "shape": ["batch", side, side, 3]},
        "output": {**output, "dtype": "float32", "shape": ["batch", width]},
        "source": dict(predictor.source),
        "vit_jax": vit_jax.__version__,
    }


def signature(about: dict[str, Any]) -> tuple[str, str]:
    """Input and output as a line each: ``"images uint8[batch, 224, 224, 3]: RGB, ..."``."""
    lines = [
        f"{a['name']} {a['dtype']}[{', '.join(map(str, a['shape']))}]: {a['meaning']}"
        for a in (about["input"], about["output"])
    ]
    return lines[0], lines[1]


def _words(frame: Framing, side: int) -> str:
    """How an image becomes a square of ``side`` pixels, for people."""
    edge = frame.edge or side + frame.rest
    what = {"center": "the short side", "squash": "both sides", "pad": "the long side"}[frame.mode]
    smooth = {"nearest": "nearest pixel", "bilinear_plain": "bilinear, not antialiased"}
    resized = f"{what} resized to {edge} ({smooth.get(frame.interpolation, f'antialiased {frame.interpolation}')})"
    if frame.mode == "pad":
        return f"{resized}, centred on {side} px of the colour {frame.fill}"
    cut = f", the central {side + frame.rest} px cut out" if edge != side + frame.rest or frame.mode == "center" else ""
    return resized + cut + (f", of those the first {side}" if frame.rest else "")


def script(imports: str, about: dict[str, Any], usage: tuple[str, str], frame: Framing) -> str:
    """A few lines of Python, from an image file to the output; to be run inside the folder."""
    side = about["input"]["shape"][1]
    cut = side + frame.rest
    lines = [f"import {imports}, numpy", "from PIL import Image", "image = Image.open('image.jpg').convert('RGB')"]
    edge, floors = frame.edge or cut, frame.rounding != "vit_jax"
    limit = "max" if frame.mode == "pad" else "min"
    whole = (
        f"{edge} * side // {limit}(image.size)"
        if floors and limit == "min"
        else (f"round({edge} * side / {limit}(image.size))")
    )
    lines.append(f"size = ({edge}, {edge})" if frame.mode == "squash" else f"size = [{whole} for side in image.size]")
    if frame.interpolation == "bilinear_plain":
        lines.append(
            "image = image.transform(size, Image.Transform.EXTENT, (0, 0, *image.size), Image.Resampling.BILINEAR)"
        )
    else:
        lines.append(f"image = image.resize(size, Image.Resampling.{frame.interpolation.upper()})")
    half = f"round((side - {cut}) / 2)" if frame.rounding == "torchvision" else f"(side - {cut}) // 2"
    if frame.mode == "pad":
        lines += [
            f"square = Image.new('RGB', ({side}, {side}), {frame.fill})",
            f"square.paste(image, [-(round if side > {cut} else int)((side - {cut}) / 2) for side in image.size])",
            "images = numpy.asarray(square)[None]",
        ]
    else:
        lines += [
            f"left, top = ({half} for side in image.size)",
            f"images = numpy.asarray(image.crop((left, top, left + {side}, top + {side})))[None]",
        ]
    return "\n".join((*lines, *usage)) + "\n"


def write_json(path: pathlib.Path, value: Any) -> None:
    """``value`` as UTF-8 JSON."""
    jsonfile.write(path, value, str)


def compare(run: Callable[[np.ndarray], np.ndarray], predictor: Predictor, notes: Sequence[str] = ()) -> float:
    """Runs the reloaded program and the checkpoint on two images of coloured squares.

    Args:
      run: uint8[B,S,S,3] -> float32[B,C].
      predictor: what it was made of.
      notes: one human-readable note per difference in the program.

    Returns:
      The largest difference (relative to the largest output where that is above 1, as features may be).

    Raises:
      UserError: it is more than rounding (or, with ``notes``, what they tell) explains.
    """
    side, model = predictor.pretrained.preprocess.host_canvas, predictor.model
    coarse = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    images = coarse.repeat(-(-side // 8), 1).repeat(-(-side // 8), 2)[:, :side, :side]
    theirs, ours = run(images), predictor.probabilities(images)
    difference = float(np.max(np.abs(theirs - ours)) / max(1, np.max(np.abs(ours))))
    allowed = TOLERANCE[model.dtype]
    if not difference <= (max(allowed, KNOWN) if notes else allowed):  # NaN is refused
        why = "; ".join(notes) or "rounding does not explain it, which is a fault of ours or of a package"
        raise UserError(f"nothing was written: the program differs from the checkpoint by {difference:.2g} ({why}).")
    return difference


def destination(out: str | os.PathLike[str]) -> pathlib.Path:
    """``out`` as the path of a folder to come.

    Raises:
      UserError: something is there, or the name is that of a file.
    """
    path = pathlib.Path(out)
    if os.path.lexists(path):
        raise UserError(f"{str(path)!r} exists already; name a new folder.")
    if path.suffix in FILE_SUFFIXES:
        raise UsageError(f"{str(path)!r} names a file, but what is written is a folder; write {path.stem!r} instead.")
    return path


@contextlib.contextmanager
def new_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into that becomes ``out`` when the block ends, and vanishes when it fails.

    Raises:
      UserError: ``out`` exists or cannot be written.
    """
    try:
        with atomic.new_folder(destination(out)) as new:
            yield new
    except OSError as e:
        raise UserError(f"{str(out)!r} cannot be written ({e.strerror or e}); name another folder.") from e
