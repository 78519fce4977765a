"""Speed of a model, forward or in training, against the same model in another form, each in a process of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from vit_jax import models
from vit_jax.bench import sides, timm
from vit_jax.bench.plain import twin
from vit_jax.bench.rivals import Rival
from vit_jax.bench.steps import Kind
from vit_jax.bench.timing import processor
from vit_jax.config import spec_fields
from vit_jax.layers.linear import LinearSpec
from vit_jax.layers.linear.specs import FIELDS
from vit_jax.models import cost
from vit_jax.models.describe import describe
from vit_jax.types import UsageError, UserError

DTYPES = ("bfloat16", "float32")
AGAINST = ("flax", "timm", "timm_compiled", "bare")
"""Whose model ours is compared with: plain layers of Flax in their faster type, timm's, timm's under torch.compile; or
ours without the fields that are named."""


def compare(
    kind: Kind,
    name: str,
    dtype: str,
    batch: int,
    size: int,
    *,
    rounds: int,
    against: str = "flax",
    linear: tuple[str, LinearSpec] | None = None,
) -> dict[str, Any]:
    """Times a model against another one or, with ``linear``, against itself.

    Args:
      kind: "forward", images to logits; "train", forward, backward and AdamW.
      name: of the model, as :func:`vit_jax.models.create` takes it.
      dtype: of the computation; Flax's layers are timed in float32 and in bfloat16.
      batch: images a step.
      size: side of the image, in pixels.
      rounds: pairs of measurements.
      against: one of :data:`AGAINST`.
      linear: a structured map for attention and MLPs, after the name that it has in the result; None for none.

    Returns:
      The processor, images per second of each and the processor's seconds that a step takes it, how many times faster
      the first is than the fastest other one, and its share of the dense model's parameters or of the speed of one
      large product.

    Raises:
      UserError: there is no such model to compare with, or a side cannot be started.
    """
    model = models.create(name, dtype=dtype)
    rivals = _rivals(Rival("vit_jax", kind, describe(model), dtype, batch, size), model, name, against, linear)
    with sides.started({label: rival.command() for label, rival in rivals.items()}) as ready:
        facts = {label: side.ask("facts") for label, side in ready.items()}
        ours, *others = (f["parameters"] for f in facts.values())
        if not linear and against != "bare" and set(others) != {ours}:
            raise UserError(f"{name!r} has {ours:,} parameters, what it is compared with {others[0]:,}.")
        times = sides.alternate(ready, rounds)
    first, *rest = times.values()
    result = {
        "processor": processor(),
        "threads": " and ".join(map(str, sorted({f["threads"] for f in facts.values()}))),
        "model": f"{name} {dtype}, {batch} images of {size} px",
        **{label: f["version"] for label, f in facts.items() if "version" in f},
        **{f"{label} images/s": batch / t.median for label, t in times.items()},
        **{f"{label} core seconds/step": t.median_work for label, t in times.items()},
        **first.compared("times faster", min(rest, key=lambda timing: timing.median)),
    }
    if linear:
        return {**result, "share of the dense model's parameters": ours / others[0]}
    total = cost.flops(model, model.inputs(size)) * batch * (1 if kind == "forward" else 3)
    peak = cost.peak(jax.local_devices()[0], dtype)
    return {**result, "share of one large product's speed": total / first.median / peak}


def without_fields(name: str) -> tuple[str, Any]:
    """``"vit_s16"`` of ``"vit_s16(reduce=merge(13))"``, and its model.

    Raises:
      UsageError: nothing is named but the model.
    """
    fields = spec_fields(name, models.NAMES, "--model")
    if len(fields) == 1:
        raise UsageError(f"--against bare leaves out fields, and {name} names none; 'vit_s16(reduce=merge(13))' does.")
    return fields["name"], models.create(fields["name"])


def _rivals(own: Rival, model: Any, name: str, against: str, linear: tuple[str, LinearSpec] | None) -> dict[str, Rival]:
    """The first is what the others are compared with."""
    if not linear and against == "bare":
        plain, bare = without_fields(name)
        return {name: own, plain: dataclasses.replace(own, model=describe(bare.clone(dtype=own.dtype)))}
    if not linear:
        return {"vit_jax": own, **(_flax if against == "flax" else _timm)(own, model, name, against)}
    if not {f.name for f in dataclasses.fields(model)}.issuperset(FIELDS):
        raise UserError(f"bench {own.kind} --linear compares ViTs, and {name!r} is none; take vit_b16 for instance.")
    structured = describe(model.clone(**dict.fromkeys(FIELDS, linear[1])))
    return {linear[0]: dataclasses.replace(own, model=structured), "dense": own}


def _flax(own: Rival, model: Any, name: str, _: str) -> dict[str, Rival]:
    if twin(model) is None:
        known = f"bench {own.kind} --against flax compares ViTs, and {name!r} is none, or no plain one"
        raise UserError(f"{known}; take vit_b16 for instance, or --against timm.")
    plain = dataclasses.replace(own, by="flax")
    return {f"plain flax {dtype}": dataclasses.replace(plain, dtype=dtype) for dtype in DTYPES}


def _timm(own: Rival, model: Any, name: str, by: Any) -> dict[str, Rival]:
    try:
        found = timm.arguments(model, own.size)
    except UserError as e:
        known = f"bench {own.kind} --against timm compares models that timm has, and {name!r} is none"
        raise UserError(f"{known}; take vit_b16 or mixer_b16 for instance.") from e
    return {by.replace("_", " "): dataclasses.replace(own, by=by, model=found)}
