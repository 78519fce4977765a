"""A model by name, with new parameters or with those of published weights fitted to it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import config, models
from vit_jax.convert import read, zoo
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Pretrained, Stored, leaves, numbered
from vit_jax.models import ImageTextModel, describe
from vit_jax.models.base import split_variables
from vit_jax.train.start import fitted, fitting, moved
from vit_jax.train.state import abstract_params
from vit_jax.types import Params, UserError

SIZE = 224
"""Side in pixels of the images of a model without weights, where none is given."""


def create(
    name: str, pretrained: str | os.PathLike[str] | None, size: int | None, seed: int, fields: Mapping[str, Any]
) -> Pretrained:
    """See :func:`vit_jax.api.create`."""
    if size is not None and size < 1:
        raise UserError(f"size={size} is no side of an image; give a number of pixels such as {SIZE}.")
    given = config.spec_fields(name, models.NAMES, "model")
    name, fields = given.pop("name"), {**given, **fields}
    wanted = models.create(name, **fields)
    if pretrained is None:
        params, variables = initial(wanted, size or SIZE, seed)
        names = numbered((), describe.classes(wanted))
        activation = wanted.output_activation if isinstance(wanted, ImageTextModel) else "softmax"
        preprocess, notes = Preprocess(size or SIZE), ("every parameter is new",)
        return Pretrained(wanted, params, preprocess, names, activation, notes=notes, variables=variables)
    like = describe.own_fields({"name": name, **fields})
    with read.load(zoo.place_of(os.fspath(pretrained), name), like=like) as found:
        model = _like(found, name, wanted, fields)
        size = size or found.preprocess.size
        preprocess = _at(found.preprocess, size)
        new, variables = initial(model, size, seed)
        params, changes = fitted(found, model, new, size)
        kept, left_out = fitting(moved(found, model), variables)
        both = isinstance(model, ImageTextModel) and isinstance(found.model, ImageTextModel)
        return Pretrained(
            model, jax.tree.map(jnp.asarray, params), preprocess,
            numbered(found.class_names, describe.classes(model)), found.output_activation, found.resize, found.source,
            (*found.notes, *changes, *left_out), provenance=found.provenance, encoder=found.encoder if both else None,
            variables=kept or variables,
        )  # fmt: skip


def resized(found: Stored, size: int | None) -> Pretrained:
    """``found`` for images of ``size`` pixels, its positions resized as its origin does it; None as it is.

    Raises:
      UserError: the model takes no images of that size, or its parameters are for one size only.
    """
    if size in (None, found.preprocess.size):
        return found.read()
    assert size is not None
    shapes = nn.unbox(abstract_params(found.model, found.model.inputs(size)))
    params, notes = fitted(found, found.model, shapes, size)
    return dataclasses.replace(
        found, params=leaves(params), preprocess=_at(found.preprocess, size), native=None, notes=(*found.notes, *notes)
    ).read()


def _at(preprocess: Preprocess, size: int) -> Preprocess:
    """The same for images of ``size`` pixels."""
    if size == preprocess.size:
        return preprocess
    single = preprocess.single
    return dataclasses.replace(single, size=size, frame=dataclasses.replace(single.frame, rest=0))


def initial(model: nn.Module, size: int, seed: int) -> tuple[Params, dict[str, Any]]:
    """New parameters and other variables for images of ``size`` pixels, a function of the seed."""
    inputs = [jnp.zeros(x.shape, x.dtype) for x in model.inputs(size)]
    return split_variables(nn.unbox(jax.jit(model.init)(jax.random.key(seed), *inputs)))


def _like(found: Stored, name: str, wanted: Any, fields: Mapping[str, Any]) -> Any:
    """The model ``name`` with ``fields``, and for what they leave open as the weights' model is.

    Raises:
      UserError: the weights are of another kind of model.
    """
    theirs = found.model
    if theirs.ENCODER != wanted.ENCODER:
        if wanted.ENCODER:
            return wanted
        theirs = getattr(theirs, theirs.ENCODER)
    if type(theirs) is not type(wanted):
        raise UserError(
            f"{found.source} holds the weights of a {type(theirs).__name__}, and {name} is a {type(wanted).__name__}."
        )
    own = describe.own_fields({"name": name, **fields})
    return describe.build(describe.over(describe.describe(theirs), own))
