"""The train step of a configuration, compiled for devices that are not here: from shapes, without data or weights."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh

from vit_jax import models, sharding
from vit_jax.config import known
from vit_jax.convert import read, zoo
from vit_jax.data.sources.base import Absent, Info
from vit_jax.evals import Classify
from vit_jax.models import ModelFn, Variables
from vit_jax.objectives import Teacher
from vit_jax.objectives.distill import Distill
from vit_jax.plan.topology import quiet
from vit_jax.train import inherit
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import Setup, build
from vit_jax.train.state import abstract_params
from vit_jax.types import UserError

EXAMPLES, CLASSES, PAIRS = 1_281_167, 1000, 400_000_000
"""Of training data that is not here and of which nothing is known: as ImageNet-1k, or as CLIP's 400 million pairs."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of a step.

    Attributes:
      text: the program; empty where the compiler refused it, as too large.
      memory: bytes of each device by the compiler's names, ``"temp"`` for instance; empty where it refused.
      needed: bytes of each device; where the compiler refused the program, what it named, which may be a part of them.
    """

    text: str
    memory: Mapping[str, int]
    needed: int


def without_data(config: TrainConfig, examples: int | None, classes: int | None) -> tuple[TrainConfig, list[str]]:
    """``config`` with its training data where that is here, else with what stands in for it; and what was assumed.

    Only how many examples and classes there are is taken from data. Evaluators are left out.

    Raises:
      UserError: the tokenizer cannot be opened.
    """
    c, notes, info = config.data, [], None
    with known(config.imports):
        if examples is None or (classes is None and c.text is None):
            try:
                info = c.open("train").info
            except UserError as e:
                reason = str(e).removesuffix(".").partition("; ")[0]
                notes.append(f"The training data is not read here ({reason}).")
        encoder = None if c.text is None else c.text.encoder()
    if info is None:
        count, number = examples or (EXAMPLES if encoder is None else PAIRS), classes or CLASSES
        names = () if encoder is not None and classes is None else tuple(map(str, range(number)))
        info = Info(names, count, captions=int(encoder is not None), encoder=encoder)
        what = f"{count:,} examples" + (f" of {number:,} classes" if names else "")
        notes.append(f"It is taken to have {what}; --examples and --classes say otherwise." if notes else f"{what}.")
    elif classes is not None:
        info = dataclasses.replace(info, class_names=tuple(map(str, range(classes))))
    absent = Absent(info)
    data = dataclasses.replace(c, path=absent, val=absent, holdout=0)
    return dataclasses.replace(config, data=data, evaluators=(Classify(),), best="val/accuracy"), notes


def setup_for(config: TrainConfig, devices: Sequence[Any]) -> Setup:
    """The run of a configuration on ``devices``; its data is a stand-in."""
    return build(inherit.with_tokenizer(config), devices)


def frozen_shapes(setup: Setup) -> tuple[Any, list[str]]:
    """Shapes of what the step takes besides state and batch, a teacher's parameters; and what was assumed of it."""
    notes: list[str] = []
    load = functools.partial(_teacher, setup, notes)
    return setup.config.objective.frozen_inputs(load), notes


def _teacher(setup: Setup, notes: list[str], objective: Distill) -> Teacher:
    size, info = setup.config.augment.size, setup.train.info
    model, variables = _teacher_model(setup, objective, notes)
    if objective.soft:
        model = objective.labels.fit_model(model, info)
    inputs = model.inputs(size)
    with jax.set_mesh(setup.mesh):
        boxed = abstract_params(model, inputs)
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    params = jax.tree.map(place, nn.unbox(boxed), sharding.param_shardings(boxed, setup.mesh))
    if not variables:
        return Teacher(params, ModelFn(model))
    whole = jax.sharding.NamedSharding(setup.mesh, jax.sharding.PartitionSpec())
    others = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), variables)
    return Teacher(Variables(params, others), ModelFn(model))


def _teacher_model(setup: Setup, objective: Distill, notes: list[str]) -> tuple[Any, Any]:
    """The teacher's model and other variables: of the weights where they are files here, else by its name."""
    place = objective.teacher
    if os.path.exists(place):
        with known(setup.config.imports), read.load(place) as found:
            return found.model, found.variables
    named = place.rpartition("/")[2].partition(".")[0]
    tags = {row.place: row.model for row in zoo.find()}
    name = next((n for n in (tags.get(place), named) if n in models.NAMES), None)
    if name is None:
        notes.append(f"The teacher {place!r} is not here; it is taken to be a model like the student.")
        return setup.model, None
    notes.append(f"The teacher {place!r} is not read here; it is taken to be the model {name}.")
    return models.create(name), None


def compiled(setup: Setup, frozen: Any) -> Compiled:
    """Compiles the step of ``setup``.

    Raises:
      UserError: the compiler refuses it, for another reason than its size.
    """
    with jax.set_mesh(setup.mesh):
        lowered = setup.step.jitted.lower(setup.shapes, setup.batch_shapes, frozen)
        try:
            with quiet():
                program = lowered.compile()
        except jax.errors.JaxRuntimeError as e:
            if temporaries := refused(str(e)):
                return Compiled("", {}, temporaries + sum(per_device(setup, frozen).values()))
            raise UserError(f"the compiler refuses the step: {str(e).splitlines()[0][:300]}.") from e
    found = program.memory_analysis()
    if found is None:
        raise UserError("the compiler of these devices does not tell what memory a program takes.")
    parts = ("argument", "output", "alias", "temp", "generated_code")
    memory = {part: int(getattr(found, f"{part}_size_in_bytes")) for part in parts}
    total = memory["argument"] + memory["temp"] + memory["generated_code"]
    return Compiled(program.as_text() or "", memory, total + max(0, memory["output"] - memory["alias"]))


def parts(setup: Setup, frozen: Any) -> dict[str, tuple[Any, Any]]:
    """What a step is handed: name -> shapes and shardings."""
    shapes, layouts = setup.shapes, setup.shardings
    others = lambda s: (s.step, s.ema, s.variables, s.objective)  # noqa: E731
    data = sharding.data_sharding(setup.mesh)
    return {
        "parameters": (shapes.params, layouts.params),
        "optimizer": (shapes.opt_state, layouts.opt_state),
        "average and other state": (others(shapes), others(layouts)),
        "teacher": (frozen, jax.tree.map(lambda x: x.sharding, frozen)),
        "batch": (setup.batch_shapes, dict.fromkeys(setup.batch_shapes, data)),
    }


def per_device(setup: Setup, frozen: Any) -> dict[str, int]:
    """Bytes of each device of every one of :func:`parts`."""
    return {name: sharding.bytes_per_device(*part) for name, part in parts(setup, frozen).items()}


def state_bytes(setup: Setup, mesh: tuple[int, ...]) -> int:
    """Bytes of a device for a state and its gradients, were they split over a mesh of these sizes."""
    other: Any = AbstractMesh(mesh, sharding.AXES)
    shapes = setup.shapes
    with jax.set_mesh(setup.mesh):
        boxed = abstract_params(setup.model, setup.model.inputs(setup.config.augment.size))
    params = sharding.param_shardings(boxed, other)
    trees = [shapes.params, shapes.params, shapes.opt_state, shapes.objective]
    layouts = [params, params, *(sharding.shardings_like(tree, shapes.params, params, other) for tree in trees[2:])]
    if shapes.ema is not None:
        trees, layouts = [*trees, shapes.ema], [*layouts, params]
    return sharding.bytes_per_device(trees, layouts)


def refused(message: str) -> int:
    """Bytes of temporaries that a program needs by the compiler's refusal; 0 where it is about something else."""
    found = re.search(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds", message)
    return int(float(found[1]) * UNITS[found[2]]) if found and "RESOURCE_EXHAUSTED" in message else 0
