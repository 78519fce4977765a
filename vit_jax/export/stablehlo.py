"""A checkpoint as one StableHLO program with its parameters inside; JAX alone runs it, vit_jax is not needed."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from vit_jax.export import base
from vit_jax.models import cast_kernels
from vit_jax.predict import Predictor
from vit_jax.types import UserError

FILE = "model.stablehlo"
PLATFORMS = ("cpu", "tpu", "cuda")
LIMIT = 2**31 - 2**24
"""Bytes of parameters that a program may hold: its container counts in int32."""


def program(predictor: Predictor) -> jax.export.Exported:
    """uint8[b,S,S,3] -> float32[b,C] for any ``b``; kernels are constants in the compute type, which changes nothing.

    Raises:
      UserError: the parameters do not fit into one program.
    """
    model: Any = predictor.model
    params = cast_kernels(model, predictor.params)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if size > LIMIT:
        raise UserError(
            f"the parameters take {size / 2**30:.1f} GiB and a program holds less than 2 GiB;"
            " export the weights alone with --to safetensors."
        )
    side = predictor.pretrained.preprocess.host_canvas
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), side, side, 3), jnp.uint8)

    def forward(images: jax.Array) -> jax.Array:
        return predictor.forward(params, images)

    return jax.export.export(jax.jit(forward), platforms=PLATFORMS)(images)


def write(predictor: Predictor, out: pathlib.Path) -> base.Exported:
    """Writes ``out/model.stablehlo`` (``jax.export.Exported.serialize()``) and ``out/model.json``.

    Raises:
      UserError: ``out`` exists or cannot be written; the parameters are too many.
    """
    usage = (
        f"program = jax.export.deserialize(bytearray(open('{FILE}', 'rb').read()))",
        "print(program.call(images))",
    )
    about = base.describe(predictor)
    with base.new_folder(out) as folder:
        exported = program(predictor)
        (folder / FILE).write_bytes(exported.serialize())
        about |= {
            "platforms": exported.platforms,
            "calling_convention_version": exported.calling_convention_version,
            "jax": jax.__version__,
            "usage": base.script("jax.export", about, usage, predictor.pretrained.preprocess.host_frame),
        }
        base.write_json(folder / base.ABOUT, about)
        reloaded = jax.jit(jax.export.deserialize(bytearray((folder / FILE).read_bytes())).call)
        difference = base.compare(lambda images: np.asarray(reloaded(images)), predictor)
    return base.Exported(out, base.signature(about), usage, difference)
