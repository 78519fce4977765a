"""A checkpoint as ONNX programs, preprocessing inside, translated from the JAX program itself."""

from __future__ import annotations

import pathlib

import jax
import numpy as np

from vit_jax.export import base
from vit_jax.export.onnx import file, int8
from vit_jax.export.onnx.translate import translate
from vit_jax.io.extras import needed
from vit_jax.models import portable, replace_in_towers

RUNTIME = base.Runtime(
    "onnxruntime",
    "session = onnxruntime.InferenceSession('{name}.onnx')",
    "session.run(None, {{'{input}': {input}}})[0]",
)


def write(loaded: base.Loaded, out: pathlib.Path, *, quantise: bool = False) -> base.Exported:
    """Writes ``out/model.json``, whose content is in the programs' ``metadata_props`` too, and the programs.

    That is ``out/model.onnx``, of an image-text model ``image.onnx`` and ``text.onnx``. Above 2 GB the parameters lie
    in a file of their own beside it. All is float32, but for the weights where ``quantise`` makes them int8.

    Raises:
      UserError: ``out`` exists or cannot be written; the model computes what ONNX cannot say; a package is missing.
    """
    with needed("--to onnx", "onnx"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    exact = base.with_model(loaded, replace_in_towers(loaded.model, dtype="float32"))
    plain = base.with_model(loaded, portable(exact.model))
    programs, differences = base.programs(exact), []
    with base.new_folder(out) as folder:
        about, usage, notes = base.write_about(exact, programs, folder, RUNTIME)
        for of, ours in zip(base.programs(plain), programs, strict=True):
            path = folder / f"{of.name}.onnx"
            given = (of.input["name"], of.input["shape"][1:], of.input["dtype"])
            examples = of.examples(2)
            file.write(*translate(of.run, plain.params, given, of.output["name"]), about, path)
            with jax.default_matmul_precision("highest"):
                expected = np.asarray(jax.jit(ours.run)(exact.params, examples))
            differences.append(base.compare(file.run(path, {given[0]: examples}), expected, "float32"))
            if quantise:
                notes += (int8.quantise(path, of),)
        base.write_json(folder / base.ABOUT, about)
    low = sorted({p.dtype for p in base.programs(loaded)} - {"float32"})
    notes += (f"it computes in float32, the checkpoint in {low[0]}",) if low else ()
    return base.Exported(out, base.signature(programs), usage, max(differences), notes)
