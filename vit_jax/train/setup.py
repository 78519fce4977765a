"""Everything that a configuration determines before the first step, built and checked in one place."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vit_jax import hosts, sharding
from vit_jax.config import Duration, known, suggest
from vit_jax.data.framing import TRAINING
from vit_jax.data.loader import Batches, Reader, eval_batches, train_batches
from vit_jax.data.sources import Source
from vit_jax.data.sources.base import Subset
from vit_jax.evals import EvalContext, Evaluator, Report, combine
from vit_jax.evals.base import Split, Transform, prefixed, reported
from vit_jax.io import jsonfile
from vit_jax.models import ModelFn, Variables, cost
from vit_jax.objectives import Apply
from vit_jax.optim import build as build_optimizer
from vit_jax.optim import masks, trainable
from vit_jax.sharding import make_mesh
from vit_jax.train import profile, teacher
from vit_jax.train.config import TrainConfig
from vit_jax.train.state import TrainState, abstract_params, make_init
from vit_jax.train.step import Step, check_batch, make_train_step
from vit_jax.trees import flat
from vit_jax.types import Batch, Params, UsageError, UserError


@dataclasses.dataclass(frozen=True)
class Setup:
    """The values a run is made of.

    Attributes:
      config: the parsed configuration.
      mesh: all devices.
      train: training examples.
      val: validation examples.
      model: unbound module, its head fitted to the data.
      apply: the model as a function of its parameters.
      total_steps: length of training.
      init: ``init(params=None, variables=None) -> TrainState``, sharded. What training takes and evaluation does not is
        found out here: parameters that have a gradient, the objective's teacher.
      shapes: of the state.
      shardings: of the state.
      step: the jitted train step, ``(state, batch) -> (state, metrics)``; found out as by ``init``.
      schedule: step -> learning rate.
      trained: paths of the parameters that are not frozen, in the order of ``metrics["finite"]``.
      prepare: jitted host batch -> evaluation batch.
      eval_sources: data of evaluators that bring their own: (path, "train" or "val") -> source.
      programs: what evaluators have compiled, for the next evaluation.
    """

    config: TrainConfig
    mesh: Mesh
    train: Source
    val: Source
    model: nn.Module
    apply: Apply
    total_steps: int
    init: Callable[..., TrainState]
    shapes: TrainState
    shardings: TrainState
    step: Step
    schedule: Callable[[Any], Any]
    trained: tuple[str, ...]
    prepare: Callable[[Batch], Batch]
    eval_sources: Mapping[tuple[str, str], Source]
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def steps_of(self, duration: Duration) -> int:
        """``duration`` in steps of this run."""
        return _steps(duration, self.config.batch_size, len(self.train), self.total_steps)

    @property
    def notes(self) -> list[str]:
        """What is to be known of data, batches and mesh before the first step, one sentence each."""
        sources = (self.train, self.val, *self.eval_sources.values())
        said = [f"data: {note}" for note in dict.fromkeys(note for source in sources for note in source.info.notes)]
        size, n = self.config.batch_size, len(self.train)
        if size > n:
            said.append(
                f"a batch of {size:,} is more than the {n:,} training examples: every step sees each of them "
                f"{size / n:.3g} times on average; lower batch_size."
            )
        return [*said, *sharding.notes(self.mesh)]

    @property
    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global batch as the step takes it."""
        c = self.config
        one = Reader(self.train, c.data.canvas, TRAINING, "train", c.data.on_error).empty(np.zeros(1, np.int64))
        return {k: jax.ShapeDtypeStruct((c.batch_size, *v.shape[1:]), v.dtype) for k, v in one.items()}

    @property
    def step_flops(self) -> float:
        """Model FLOPs of one step: the backward pass costs twice the forward pass, SAM repeats both."""
        sam = self.config.optim.sam
        passes = 1 if sam is None else sam.passes
        inputs = self.model.inputs(self.config.augment.size)
        return 3 * passes * cost.flops(self.model, inputs) * self.config.batch_size

    def train_batches(self, start_step: int) -> Batches:
        """This host's training batches from ``start_step`` on."""
        c = self.config
        return train_batches(
            self.train,
            batch_size=c.batch_size,
            seed=c.seed,
            canvas=c.data.canvas,
            start_step=start_step,
            steps=self.total_steps,
            **self._reading(c.batch_size),
        )

    def evaluate(self, params: Params | Variables, source: Source | None = None) -> Report:
        """All evaluators over ``source`` (by default the validation split), their metrics in one report.

        On several hosts the metrics are those of the first to the last bit, as decisions follow from them.
        """
        found: dict[Any, dict[Any, Any]] = {evaluator.data: {} for evaluator in self.config.evaluators}
        report = combine([self._report(e, params, source, found[e.data]) for e in self.config.evaluators])
        found_here = json.dumps(report.metrics, default=np.generic.item)
        report.metrics.update(jsonfile.loads(hosts.share("what an evaluation found", found_here)[0]))
        return report

    def _report(
        self, evaluator: Evaluator, params: Params | Variables, source: Source | None, found: dict[Any, Any]
    ) -> Report:
        """What ``evaluator`` finds on its own data, or else on ``source`` or the validation split."""
        c, info = self.config, self.train.info
        sources: Mapping[str, Source] = {"train": self.train, "val": source or self.val}
        if evaluator.data is not None:  # a benchmark of its own, described by its own classes
            sources = {split: self.eval_sources[evaluator.data, split] for split in evaluator.splits}
            info = dataclasses.replace(sources["val"].info, encoder=info.encoder)
        opened: list[Batches] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.set_mesh(self.mesh))

            def read(split: Split, transform: Transform | None, rows: np.ndarray | None = None) -> Iterator[Batch]:
                opened.append(stack.enter_context(contextlib.closing(self._eval_batches(sources[split], rows))))
                for batch in opened[-1]:
                    yield self._prepared(batch, transform)

            names = self.train.info.class_names
            given = (self.model, self.apply, params, c.objective, info, names, read, self.programs, found)
            context = EvalContext(*given)
            report = evaluator(context)
            if skipped := sum(map(int, hosts.share("the unreadable examples", str(sum(b.skipped for b in opened))))):
                report.metrics["unreadable"] = float(skipped)
            return prefixed(report, evaluator.prefix)

    def _eval_batches(self, source: Source, rows: np.ndarray | None) -> Batches:
        """This host's batches of ``source``, every example once, or its ``rows``."""
        c = self.config
        most = min(c.eval_batch_size or c.batch_size, len(source))  # what is more would be padding
        size = _round_up(most, self.mesh.shape["replica"] * self.mesh.shape["fsdp"])
        source = source if rows is None else Subset(source, rows)
        return eval_batches(source, batch_size=size, canvas=c.data.canvas, frame=c.data.frame, **self._reading(size))

    def _reading(self, batch_size: int) -> dict[str, Any]:
        """How this host reads, and which rows of batches of that size."""
        c = self.config.data
        keys = ("on_error", "max_pixels", "workers", "prefetch", "timeout")
        how = {key: getattr(c, key) for key in keys}
        return {**how, "places": sharding.host_rows(self.mesh, batch_size)}

    def _prepared(self, batch: Batch, transform: Transform | None) -> Batch:
        """A host's batch on the devices, its canvas transformed, ready for the model."""
        batch = sharding.put(batch, self.mesh)
        if transform is not None:
            run = self.programs.setdefault(transform, jax.jit(transform))
            batch = {**batch, "image": run(batch["image"])}
        return self.prepare(batch)


def _steps(duration: Duration, batch_size: int, num_examples: int, total: int | None) -> int:
    return duration.steps(batch_size=batch_size, num_examples=num_examples, total=total)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def build(config: TrainConfig, devices: Any = None, train: Source | None = None) -> Setup:
    """Opens the data, builds model, optimizer and step, and checks that all of it fits together. Computes nothing.

    ``devices`` are others than those that there are, ``train`` other training data than ``config`` names.

    Raises:
      UserError: whatever the user got wrong, in a sentence.
    """
    with known(config.imports):  # sources of one's own are opened by the names of their classes
        return _build(config, devices, train)


def _build(c: TrainConfig, devices: Any, train: Source | None) -> Setup:
    mesh = make_mesh(c.mesh, devices)
    c.augment.check(c.data.canvas)
    reported(c.evaluators)  # or two of them say the same name
    group = None if c.optim.sam is None else c.optim.sam.m
    check_batch(c.batch_size, c.accumulate, group, mesh)
    least = c.objective.min_batch_size
    if min(c.batch_size, group or c.batch_size) < least:
        what = "batch_size" if c.batch_size < least else "the SAM group size m"
        raise UserError(f"{what} is 1, and this objective compares pairs; set it to {least} or more.")
    train = c.data.open("train") if train is None else train  # the data first, before anything is compiled
    val, eval_sources = c.data.open("val", train.info.class_names), _eval_sources(c)
    total = _steps(c.duration, c.batch_size, len(train), None)
    if total < 1:
        raise UserError(f"duration={str(c.duration)!r} is less than one step of {c.batch_size} examples.")
    profile.check(c.profile, total)
    model = c.objective.fit_model(c.model, train.info)
    inputs = model.inputs(c.augment.size)
    apply = ModelFn(model)
    with jax.set_mesh(mesh):
        boxed = abstract_params(model, inputs)
    # outside of the mesh: its devices may be those of a topology that is not here
    steps_of = functools.partial(_steps, batch_size=c.batch_size, num_examples=len(train), total=total)
    untrainable = untrainable_reason(nn.unbox(boxed))
    tx, schedule = optax.identity(), optax.constant_schedule(0.0)
    if not untrainable:
        tx, schedule = build_optimizer(c.optim, nn.unbox(boxed), model.roles(nn.unbox(boxed)), total, steps_of)
    tx = optax.with_extra_args_support(tx)
    with jax.set_mesh(mesh):
        options: dict[str, Any] = {"seed": c.seed, "ema": c.ema is not None, "mesh": mesh}
        make, shapes, shardings = make_init(model, inputs, tx, c.objective, **options)
    sharding.check_replicated(shapes, shardings, mesh, c.mesh.most_replicated)

    @functools.cache
    def frozen_inputs() -> Any:
        if untrainable:
            raise UserError(untrainable)
        return c.objective.frozen_inputs(functools.partial(teacher.load, c, model, train.info.class_names, mesh))

    def init(params: Params | None = None, variables: Any = None) -> TrainState:
        frozen_inputs()
        return make(params, variables)

    step = make_train_step(
        model, c.objective, tx, augment=c.augment.train_fn(train.info.num_classes), schedule=schedule,
        seed=c.seed, mesh=mesh, shardings=shardings, accumulate=c.accumulate, ema=c.ema, frozen_inputs=frozen_inputs,
    )  # fmt: skip
    learned = {} if untrainable else masks.keep(trainable(c.optim, shapes.params), masks.paths(shapes.params))
    trained = tuple(jax.tree.leaves(learned))
    return Setup(
        c, mesh, train, val, model, apply, total, init, shapes, shardings, step, schedule, trained,
        jax.jit(c.augment.eval_fn()), eval_sources,
    )  # fmt: skip


def check_best(c: TrainConfig) -> None:
    """Raises a :class:`UsageError` where a training could not tell its best checkpoint; an evaluation has none."""
    metrics = reported(c.evaluators)
    if c.best not in metrics:
        raise UsageError(f"best={c.best!r} is no metric of the evaluators{suggest(c.best, metrics)}")


def untrainable_reason(shapes: Params) -> str | None:
    """Why a model is there to be evaluated only: it has parameters without gradient; else None."""
    for name, leaf in flat(shapes).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return (
                f"{name} holds {leaf.dtype} numbers, which cannot be trained; train a dense model or 'sparse24', and "
                "convert it with --linear to run what it has learned."
            )
    return None


def _eval_sources(c: TrainConfig) -> dict[tuple[str, str], Source]:
    """The data of evaluators that bring their own: opened now, so that a wrong path is found before training."""
    wanted = [(e.data, split) for e in c.evaluators if e.data is not None for split in e.splits]
    return {(path, split): c.data.open_other(path, split) for path, split in wanted}


def describe(setup: Setup) -> dict[str, Any]:
    """What a dry run prints: the step is traced and lowered, nothing is compiled or computed."""
    mesh, batch = setup.mesh, setup.batch_shapes
    with jax.set_mesh(mesh):
        setup.step.lower(setup.shapes, batch)
    sizes = [x.size for x in jax.tree.leaves(setup.shapes.params)]
    return {
        "parameters": sum(sizes),
        "mesh": dict(mesh.shape),
        "state bytes per device": sharding.bytes_per_device(setup.shapes, setup.shardings),
        "batch bytes per device": sum(x.size * x.dtype.itemsize for x in batch.values())
        // (mesh.shape["replica"] * mesh.shape["fsdp"]),
        "FLOPs per step": setup.step_flops,
        "steps": setup.total_steps,
        "training examples": len(setup.train),
        "validation examples": len(setup.val),
    }
