"""The teacher of a distillation: loaded from anywhere, checked against the run, laid out over the mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax import models, sharding
from vit_jax.augment import Norm
from vit_jax.config import known
from vit_jax.convert import Stored, read
from vit_jax.data.classes import mismatch
from vit_jax.models import ModelFn, Variables
from vit_jax.objectives import Teacher
from vit_jax.objectives.distill import Distill, with_blocks
from vit_jax.train.adapt import adapt
from vit_jax.train.config import TrainConfig
from vit_jax.train.progress import noted, say
from vit_jax.train.state import abstract_params
from vit_jax.trees import flat
from vit_jax.types import Params, UserError


def load(config: TrainConfig, model: nn.Module, class_names: Sequence[str], mesh: Mesh, objective: Distill) -> Teacher:
    """The teacher that ``objective`` names.

    It computes in its own type, from the run's images: positions are resized where the run's are of another size.

    Args:
      config: of the run.
      model: the student.
      class_names: of the data.
      mesh: all devices; the teacher's parameters are laid out over them as a student's would be.

    Raises:
      UserError: it cannot be loaded, is no classifier of these classes, takes images prepared otherwise, or its block
        outputs cannot be compared with the student's.
    """
    size = config.augment.size
    here = Mesh(np.asarray(jax.local_devices()[:1]), "x")  # to be read on, whatever mesh the caller computes on
    try:
        with jax.set_mesh(here), known(config.imports), read.load(objective.teacher) as found:
            _check(found, objective, config.augment.norm, class_names)
            theirs = found.model
            boxed = abstract_params(theirs, theirs.inputs(size))
            shapes = nn.unbox(boxed)
            if objective.feature:
                _check_blocks(objective, theirs, shapes, model, size)
            params, notes = _fitted(found, shapes)
    except UserError as e:
        raise type(e)(f"the teacher of objective='distill': {e}") from e
    if found.preprocess.size != size:
        notes.append(f"it knows images of {found.preprocess.size} px and sees {size} px")
    say(noted(f"the teacher is {found.source}", [*found.notes, *notes]))
    placed = sharding.place(params, sharding.param_shardings(boxed, mesh))
    if not found.variables:
        return Teacher(placed, ModelFn(theirs))
    whole = NamedSharding(mesh, PartitionSpec())
    others = sharding.place(found.variables, jax.tree.map(lambda _: whole, found.variables))
    return Teacher(Variables(placed, others), ModelFn(theirs))


def _check(found: Stored, objective: Distill, norm: Norm, class_names: Sequence[str]) -> None:
    if not isinstance(found.model, models.ImageModel):
        raise UserError(f"{found.source} is an image-text model; give a classifier.")
    if objective.soft:
        _check_classes(found, objective, list(class_names))
    was = found.preprocess
    if not np.allclose(was.mean + was.std, norm.mean + norm.std, atol=1e-6):
        kept = was.augment()["norm"]
        kept = kept if isinstance(kept, str) else f"norm(mean={was.mean}, std={was.std})"
        raise UserError(
            f"{found.source} takes images normalised otherwise than this run's; add --config.augment.norm='{kept}'."
        )


def _check_classes(found: Stored, objective: Distill, here: list[str]) -> None:
    if differs := mismatch(found.class_names, here):
        raise UserError(
            f"{found.source} {differs}; give a teacher of the data's classes, in that order, "
            "or set --config.objective.soft=0."
        )
    theirs, ours = found.output_activation, objective.output_activation
    if theirs != ours:
        raise UserError(
            f"{found.source} means its logits for {theirs!r}, this run for {ours!r}; add "
            f"--config.objective.output_activation={theirs}."
        )


def _check_blocks(objective: Distill, theirs: nn.Module, shapes: Params, model: Any, size: int) -> None:
    def outputs(model: Any, params: Params) -> Any:
        run = lambda p, x: with_blocks(ModelFn(model), objective.blocks, p, x, train=False)[1]  # noqa: E731
        return [x.shape[1:] for x in jax.eval_shape(run, params, *model.inputs(size))]

    student = nn.unbox(abstract_params(model, model.inputs(size)))
    wanted, given = outputs(model, student), outputs(theirs, shapes)
    if (most := min(len(wanted), len(given))) < objective.blocks:
        raise UserError(f"blocks={objective.blocks} are more than there are; set --config.objective.blocks={most}.")
    if wanted != given:
        (a, b), (c, d) = next((g, w) for g, w in zip(given, wanted, strict=True) if g != w)
        raise UserError(
            f"the teacher's features are [tokens={a}, channels={b}], the student's [{c}, {d}]; give a teacher of the "
            "student's width and tokens, or set --config.objective.feature=0."
        )


def _fitted(found: Stored, shapes: Params) -> tuple[Params, list[str]]:
    """Its parameters for models of these ``shapes``, and what was changed."""
    kinds: Mapping[str, Any] = {path: (t.shape, t.dtype) for path, t in found.params.items()}
    if kinds == {path: (leaf.shape, leaf.dtype) for path, leaf in flat(shapes).items()}:
        return found.tree(), []
    return adapt(found.tree(), shapes, name=found.source, resize=found.resize)
