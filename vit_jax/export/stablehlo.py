"""A checkpoint as StableHLO programs with their parameters inside; JAX alone runs them, vit_jax is not needed."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.export
import numpy as np

from vit_jax.export import base
from vit_jax.models import ImageTextModel, cast_kernels, portable
from vit_jax.types import Params, UserError

RUNTIME = base.Runtime(
    "jax.export",
    "program = jax.export.deserialize(bytearray(open('{name}.stablehlo', 'rb').read()))",
    "program.call({input})",
)
PLATFORMS = ("cpu", "tpu", "cuda")
LIMIT = 2**31 - 2**24
"""Bytes of parameters that a program may hold: its container counts in int32."""


def program(of: base.Program, params: Params) -> jax.export.Exported:
    """``of`` for any batch size; ``params`` are constants.

    Raises:
      UserError: the parameters do not fit into one program.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    given = jax.ShapeDtypeStruct((batch, *of.input["shape"][1:]), of.input["dtype"])
    size = sum(leaf.nbytes for leaf in jax.make_jaxpr(lambda x: of.run(params, x))(given).consts)
    if size > LIMIT:
        raise UserError(
            f"the parameters take {size / 2**30:.1f} GiB and a program holds less than 2 GiB;"
            " export the weights alone with --to safetensors."
        )
    return jax.export.export(jax.jit(lambda x: of.run(params, x)), platforms=PLATFORMS)(given)


def write(loaded: base.Loaded, out: pathlib.Path) -> base.Exported:
    """Writes ``out/model.json`` and ``jax.export.Exported.serialize()`` of each program.

    That is ``out/model.stablehlo``, of an image-text model ``image.stablehlo`` and ``text.stablehlo``. Kernels are in
    the compute type, which changes nothing.

    Raises:
      UserError: ``out`` exists or cannot be written; the parameters are too many.
    """
    programs, params = base.programs(loaded), _cast(loaded.model, loaded.params)
    plain = base.programs(base.with_model(loaded, portable(loaded.model)))
    differences = []
    with base.new_folder(out) as folder:
        about, usage, notes = base.write_about(loaded, programs, folder, RUNTIME)
        for of, ours in zip(plain, programs, strict=True):
            exported, path = program(of, params), folder / f"{of.name}.stablehlo"
            path.write_bytes(exported.serialize())
            about |= {
                "platforms": exported.platforms,
                "calling_convention_version": exported.calling_convention_version,
                "jax": jax.__version__,
            }
            del exported
            examples = of.examples(2)
            theirs = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)(examples)
            expected = jax.jit(ours.run)(loaded.params, examples)
            differences.append(base.compare(np.asarray(theirs), np.asarray(expected), of.dtype))
        base.write_json(folder / base.ABOUT, about)
    return base.Exported(out, base.signature(programs), usage, max(differences), notes)


def _cast(model: Any, params: Params) -> Params:
    if not isinstance(model, ImageTextModel):
        return cast_kernels(model, params)
    towers: dict[str, Any] = {"image_tower": model.image_tower, "text_tower": model.text_tower}
    return {**params, **{name: cast_kernels(tower, params[name]) for name, tower in towers.items()}}
