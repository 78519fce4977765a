"""What an exported program says of itself, the proof that it computes the same, and how it gets onto the disk."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_jax.convert import verify
from vit_jax.data.framing import Framing
from vit_jax.export import texts
from vit_jax.io import atomic, installation, jsonfile
from vit_jax.models import Captioner
from vit_jax.predict import ImageText, Predictor
from vit_jax.types import Params, UsageError, UserError

ABOUT = "model.json"
FILE_SUFFIXES = (".onnx", ".stablehlo", ".mlir", ".safetensors", ".json")
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
"""Largest difference to the checkpoint that rounding explains, by compute type."""
SCORES = {"softmax": "numpy.exp(logits) / numpy.exp(logits).sum(1)", "sigmoid": "1 / (1 + numpy.exp(-logits))"}
"""Expressions of Python for the probabilities of texts, by the model's activation."""
Loaded = Predictor | ImageText


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
      folder: where.
      signature: of the program, a line each.
      usage: how to load and run it, lines of Python.
      difference: largest difference to the checkpoint's outputs that was measured, None where nothing ran.
      notes: one human-readable note per difference from the checkpoint.
    """

    folder: pathlib.Path
    signature: tuple[str, str]
    usage: tuple[str, ...]
    difference: float | None = None
    notes: tuple[str, ...] = ()


class Runtime(NamedTuple):
    """How Python runs a program.

    Attributes:
      imports: package.
      load: line of Python that opens the program of the file ``{name}``.
      call: expression of Python that is its output for the array ``{input}``.
    """

    imports: str
    load: str
    call: str


@dataclasses.dataclass(frozen=True)
class Program:
    """One function that a model is exported as.

    Attributes:
      name: of its file, without suffix: "model", or "image" and "text".
      run: ``(params, x) -> y``, preprocessing included: pure, traceable, for a batch of any size.
      dtype: compute type of what it runs.
      input: plain data: name, meaning, dtype and shape of x, "batch" first.
      output: the same of y.
      examples: so many of x that tell outputs apart.
    """

    name: str
    run: Callable[[Params, Any], jax.Array]
    dtype: str
    input: dict[str, Any]
    output: dict[str, Any]
    examples: Callable[[int], np.ndarray]


def programs(loaded: Loaded) -> tuple[Program, ...]:
    """A classifier as one program, an image-text model as one for each tower."""
    side, model = loaded.pretrained.preprocess.host_canvas, loaded.model
    if loaded.pretrained.preprocess.frame.mode == "patches":
        raise UserError(
            f"{loaded.pretrained.source} sees images in their own shape, and a program here takes squares; convert it "
            "to another format instead."
        )
    meaning = f"RGB, {_words(loaded.pretrained.preprocess.host_frame, side)}; all else is inside"
    images: dict[str, Any] = {"name": "images", "meaning": meaning, "dtype": "uint8", "shape": ["batch", side, side, 3]}

    def squares(count: int) -> np.ndarray:
        coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
        return coarse.repeat(-(-side // 8), 1).repeat(-(-side // 8), 2)[:, :side, :side]

    if isinstance(loaded, Predictor):
        kinds = {"softmax": "softmax over class_names", "sigmoid": "sigmoid of each of class_names"}
        output: dict[str, Any] = {"name": "probabilities", "meaning": kinds[loaded.pretrained.output_activation]}
        if not model.num_classes:
            output = {"name": "features", "meaning": "pooled features of a model without a head"}
        image = jax.ShapeDtypeStruct((1, *images["shape"][1:]), "uint8")
        width = jax.eval_shape(loaded.forward, loaded.params, image).shape[1]
        output |= {"dtype": "float32", "shape": ["batch", width]}
        return (Program("model", loaded.forward, model.dtype, images, output, squares),)
    length = text_length(loaded)
    tokens = {"name": "tokens", "meaning": "a text", "dtype": "int32", "shape": ["batch", length]}
    output = {
        "name": "embeddings",
        "meaning": "of unit length",
        "dtype": "float32",
        "shape": ["batch", model.embed_dim],
    }

    def embed_image(params: Params, images: Any) -> jax.Array:
        return loaded.apply(params, loaded.prepared(images), method="embed_image")

    def embed_text(params: Params, tokens: Any) -> jax.Array:
        return loaded.apply(params, tokens, method="embed_text")

    short = with_model(loaded, model.clone(text_tower=model.text_tower.clone(length=length)))
    some = functools.partial(verify.texts, short.pretrained.stored())
    return (
        Program("image", embed_image, model.image_tower.dtype, images, output, squares),
        Program("text", embed_text, model.text_tower.dtype, tokens, output, some),
    )


def text_length(loaded: Loaded) -> int:
    """Tokens of a text: as the tokenizer makes them, which may be fewer than there are positions for."""
    encoder, tower = loaded.pretrained.encoder, loaded.model.text_tower
    return tower.length if encoder is None else encoder.length


def describe(loaded: Loaded, programs: Sequence[Program]) -> dict[str, Any]:
    """Plain data that programs travel with: class names or temperature, inputs, outputs, where they come from."""
    shared = {"source": dict(loaded.source), **installation.provenance()}
    if isinstance(loaded, Predictor):
        (program,) = programs
        return {
            "class_names": list(loaded.class_names), "input": program.input, "output": program.output, **shared,
        }  # fmt: skip
    scale, bias = (float(x) for x in loaded.apply(loaded.params, method="scalars"))
    return {
        **{program.name: {"input": program.input, "output": program.output} for program in programs},
        "logit_scale": scale,
        "logit_bias": bias,
        "output_activation": loaded.pretrained.output_activation,
        **shared,
    }


def signature(programs: Sequence[Program]) -> tuple[str, str]:
    """Inputs and outputs as a line each: ``"images uint8[batch, 224, 224, 3]: RGB, ..."``."""
    lines = [
        [f"{a['name']} {a['dtype']}[{', '.join(map(str, a['shape']))}]: {a['meaning']}" for a in ends]
        for ends in ([p.input for p in programs], [p.output for p in programs])
    ]
    return "; ".join(lines[0]), "; ".join(dict.fromkeys(lines[1]))


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


def write_about(
    loaded: Loaded, programs: Sequence[Program], folder: pathlib.Path, runtime: Runtime
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """Writes the tokenizer's file where there is one, and says what ``model.json`` is to hold.

    Returns:
      Plain data with a script under "usage": from an image file (and texts) to the output, to be run inside the
      folder; the last lines of that script, which load and run; notes.
    """
    about, frame = describe(loaded, programs), loaded.pretrained.preprocess.host_frame
    imports, notes = [runtime.imports, "numpy"], tuple[str, ...]()
    lines = ["from PIL import Image", "image = Image.open('image.jpg').convert('RGB')"]
    lines += _framed(frame, programs[0].input["shape"][1])
    calls = [(p, runtime.load.format(name=p.name), runtime.call.format(input=p.input["name"])) for p in programs]
    if isinstance(loaded, Predictor):
        usage = [line for _, load, call in calls for line in (load, f"print({call})")]
    else:
        written = texts.write(loaded.pretrained.encoder, text_length(loaded), folder)
        about["tokenizer"], notes = written.about, written.notes
        imports += written.imports
        lines += ["texts = ['a photo of a cat', 'a photo of a dog']", *written.script]
        usage = [line for p, load, call in calls for line in (load, f"{p.name} = numpy.asarray({call})")]
        usage += [f"logits = {about['logit_scale']!r} * image @ text.T + {about['logit_bias']!r}"]
        usage += [f"print({SCORES[loaded.pretrained.output_activation]})"]
        if isinstance(loaded.model, Captioner):
            notes += ("the two towers: the decoder, which writes captions, is left out",)
    about["usage"] = "\n".join((f"import {', '.join(imports)}", *lines, *usage)) + "\n"
    return about, tuple(usage), notes


def _framed(frame: Framing, side: int) -> list[str]:
    """Lines of Python from ``image``, of Pillow's, to ``images``, uint8[1, side, side, 3]."""
    cut, lines = side + frame.rest, []
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
    return lines


def write_json(path: pathlib.Path, value: Any) -> None:
    """``value`` as UTF-8 JSON."""
    jsonfile.write(path, value, str)


def compare(theirs: np.ndarray, ours: np.ndarray, dtype: str) -> float:
    """How far the outputs of a reloaded program, float32[B,C], are from the checkpoint's, computed in ``dtype``.

    Returns:
      The largest difference (relative to the largest output where that is above 1, as features may be).

    Raises:
      UserError: it is more than rounding explains.
    """
    difference = float(np.max(np.abs(theirs - ours)) / max(1, np.max(np.abs(ours))))
    if not difference <= TOLERANCE[dtype]:  # NaN is refused
        raise UserError(
            f"nothing was written: the program differs from the checkpoint by {difference:.2g}, which rounding does "
            "not explain: that is a fault of ours or of a package."
        )
    return difference


def with_model(loaded: Loaded, model: Any) -> Loaded:
    """The same weights in another module with the same parameters."""
    return dataclasses.replace(loaded, pretrained=dataclasses.replace(loaded.pretrained, model=model))


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
