"""What a TPU's compiler expects a model to cost on one chip: an estimate, for which no TPU is needed."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax import sharding
from vit_jax.bench.models import without_fields
from vit_jax.bench.plain import twin
from vit_jax.layers.linear import LinearSpec
from vit_jax.layers.linear.specs import FIELDS
from vit_jax.models import ImageTextModel, cost
from vit_jax.models.base import replace_in_towers
from vit_jax.objectives import OBJECTIVES
from vit_jax.plan import account, hlo, schedule, topology
from vit_jax.plan.account import Entry
from vit_jax.plan.report import Kernel
from vit_jax.types import UserError

Work = Literal["forward", "train"]
ATTACKED = 10
"""Entries that are named, of those with the most cycles above their floor."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the compiler expects of one program on one chip. It is no measurement.

    Attributes:
      name: of the model.
      cycles: of all that the compiler estimates, and of kernels by their schedule.
      floor: cycles of the model's products at the peak of the matrix units.
      bytes: read from HBM and written to it.
      seconds: the cycles at the clock, or the bytes at the bandwidth of HBM if that is more.
      mfu: share of the chip's peak that the model's products have of that.
      copies: of activations that are copied, laid out anew or cast, without anything being computed.
      entries: by layer and kind.
      kernels: by their schedules.
      notes: what is assumed and left out, a sentence each.
    """

    name: str
    cycles: int
    floor: int
    bytes: int
    seconds: float
    mfu: float
    copies: int
    entries: tuple[Entry, ...]
    kernels: tuple[Kernel, ...]
    notes: tuple[str, ...]

    @property
    def kinds(self) -> dict[str, int]:
        """Kind -> cycles."""
        table = collections.Counter[str]()
        for e in self.entries:
            table[e.kind] += e.cycles
        return {kind: table[kind] for kind in account.KINDS}

    @property
    def attack(self) -> list[Entry]:
        """The entries with the most cycles above their floor."""
        return sorted(self.entries, key=lambda e: -e.above)[:ATTACKED]

    def summary(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        named = [f"{e.layer}: {e.kind}" for e in self.attack]
        return {**dataclasses.asdict(self), "kinds": self.kinds, "attack": named}

    def lines(self) -> Iterator[str]:
        """The report."""
        yield f"{self.name}: {self.cycles / 1e6:,.2f} million cycles, {self.seconds * 1e3:,.2f} ms, MFU {self.mfu:.1%}"
        moved = f"{self.bytes / 1e6:,.0f} MB from and to HBM"
        yield f"  at least {self.floor / 1e6:,.2f} for the products of the model; {moved}"
        yield "  " + ", ".join(f"{kind} {n / 1e6:,.2f}" for kind, n in self.kinds.items() if n)
        yield f"  activations copied, laid out anew or cast {self.copies:,} times"
        yield f"  {'The most above their floor':50s} {'kind':8s} {'million':>8s} {'floor':>7s} {'GFLOP':>8s} {'MB':>8s}"
        for e in self.attack:
            work = f"{e.flops / 1e9:>8,.1f} {e.bytes / 1e6:>8,.1f}"
            yield f"  {e.layer[-50:]:50s} {e.kind:8s} {e.cycles / 1e6:>8,.2f} {e.floor / 1e6:>7,.2f} {work}"
        for k in self.kernels:
            what = (
                k.reason or f"{k.cycles / 1e6:,.2f} million, {k.calls:,} calls of {k.bundles:,} bundles x {k.steps:,}"
            )
            yield f"  kernel {k.name}: {what}"


def compare(
    work: Work,
    name: str,
    model: Any,
    chip: str,
    *,
    batch: int,
    size: int,
    linear: tuple[str, LinearSpec] | None = None,
    against: Literal["", "plain", "dense", "bare"] = "",
) -> list[Estimate]:
    """The estimate of a model and, behind it, of what it is compared with.

    Args:
      work: "forward", images to logits (and texts to embeddings); "train", loss and gradient, without an optimizer.
      name: of the model.
      model: of the package, computed in bfloat16.
      chip: a name in :data:`vit_jax.plan.topology.CHIPS`.
      batch: images a step.
      size: side of an image, in pixels.
      linear: a structured map for attention and MLPs, after the name that it has in the result; None for none.
      against: the same model of plain Flax layers, with dense maps, or without fields that ``name`` names; "" for none.

    Raises:
      UserError: libtpu is not installed; there is nothing to compare with; the program does not fit on the chip.
    """
    model = replace_in_towers(model, dtype="bfloat16")
    inputs = tuple(jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in model.inputs(size))
    own = {name: model}
    if linear:
        own = {f"{name} {linear[0]}": replace_in_towers(model, **dict.fromkeys(FIELDS, linear[1]))}
    if against == "dense":
        own[f"{name} dense"] = model
    elif against == "bare":
        plain_name, bare = without_fields(name)
        own[plain_name] = replace_in_towers(bare, dtype="bfloat16")
    elif against == "plain":
        if (plain := twin(model)) is None:
            raise UserError(f"there is no model of plain Flax layers that is {name!r}; of ViTs there is, as vit_b16.")
        own[f"{name} plain"] = plain
    return [estimate(work, label, one, inputs, chip) for label, one in own.items()]


def estimate(work: Work, label: str, model: Any, inputs: Sequence[jax.ShapeDtypeStruct], chip: str) -> Estimate:
    """Compiles a model for a chip and reads what the compiler says.

    Args:
      work: see :func:`compare`.
      label: its name.
      model: a model of the package or a plain one.
      inputs: shapes of a batch: images, and of an image-text model texts.
      chip: a name in :data:`vit_jax.plan.topology.CHIPS`.
    """
    c = topology.CHIPS[chip]
    device = topology.find(f"{chip}:{c.topologies[0]}").devices[0]
    text, sizes = compiled(work, model, inputs, device)
    program = hlo.parse(text)
    kernels = schedule.kernels(program, c, account.layer)
    entries = account.entries(program, kernels, c)
    cycles, moved = sum(e.cycles for e in entries), sum(e.bytes for e in entries)
    one = tuple(jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in inputs)
    flops = cost.flops(model, one) * inputs[0].shape[0] * (3 if work == "train" else 1)
    seconds = max(cycles / c.clock, moved / c.bandwidth)
    assumed = (
        f"An estimate of the compiler for one {chip} chip at {c.clock / 1e9:.2f} GHz, no measurement. What is fused "
        "counts where the last of it belongs; products inside of kernels are not in the GFLOP."
    )
    return Estimate(
        name=label,
        cycles=cycles,
        floor=int(flops / c.per_cycle),
        bytes=moved,
        seconds=seconds,
        mfu=flops / c.peak / seconds,
        copies=account.copies(program, sizes, "inputs"),
        entries=tuple(entries),
        kernels=tuple(kernels),
        notes=(assumed, *schedule.notes(kernels)),
    )


def compiled(work: Work, model: Any, inputs: Sequence[jax.ShapeDtypeStruct], device: Any) -> tuple[str, frozenset[int]]:
    """The program of a model on a device, and how many elements its parameters have.

    Raises:
      UserError: it does not fit there.
    """
    mesh = Mesh(np.asarray([device]).reshape(1, 1, 1), sharding.AXES)
    whole = NamedSharding(mesh, PartitionSpec())
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)  # noqa: E731
    with jax.set_mesh(mesh), topology.quiet():
        made = jax.eval_shape(lambda *x: nn.unbox(model.init(jax.random.key(0), *x)), *inputs)
        lowered = jax.jit(_program(work, model)).lower(*jax.tree.map(place, (made, _batch(inputs))))
        try:
            text = lowered.compile().as_text() or ""
        except jax.errors.JaxRuntimeError as e:
            reason = str(e).split("\n", 1)[0][:200]
            raise UserError(f"the compiler refuses the program ({reason}); take a smaller --batch.") from e
    return text, frozenset(math.prod(x.shape) for x in jax.tree.leaves(made))


def _program(work: Work, model: Any) -> Any:
    """``f(variables, inputs)``: what the model returns, or its loss and gradient."""
    pairs = isinstance(model, ImageTextModel)
    objective = OBJECTIVES["contrast" if pairs else "classify"]()

    def forward(variables: Any, inputs: Mapping[str, Any]) -> Any:
        return model.apply(variables, *([inputs["image"], inputs["text"]] if pairs else [inputs["image"]]))

    def train(variables: Any, inputs: Mapping[str, Any]) -> Any:
        others = {k: v for k, v in variables.items() if k != "params"}
        apply = lambda p, *x, **options: model.apply({"params": p, **others}, *x, **options)  # noqa: E731
        rngs = {"dropout": jax.random.key(0)}
        (loss, _), grads = objective.value_and_grad(apply, variables["params"], inputs, rngs, 1)
        return loss, grads

    return forward if work == "forward" else train


def _batch(inputs: Sequence[jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    rows = inputs[0].shape[:1]
    batch = dict(zip(("image", "text"), inputs, strict=False))
    label = {} if len(inputs) > 1 else {"label": jax.ShapeDtypeStruct(rows, jnp.int32)}
    return {**batch, **label, "mask": jax.ShapeDtypeStruct(rows, jnp.bool_)}


def bars(one: Estimate, most: int = 14) -> dict[str, dict[str, float]]:
    """Layer -> kind -> million cycles, of the layers that take the most; the others are one."""
    table: dict[str, collections.Counter[str]] = {}
    for e in one.entries:
        table.setdefault(e.layer, collections.Counter())[e.kind] += e.cycles
    rows = sorted(table.items(), key=lambda row: -row[1].total())
    rest = sum((bar for _, bar in rows[most:]), collections.Counter[str]())
    shown = [*rows[:most], ("others", rest)] if rest else rows[:most]
    return {layer: {kind: n / 1e6 for kind, n in bar.items()} for layer, bar in shown}
