"""Plans: a configuration's step compiled for a topology, and what follows from that; kept, so that it is done once."""

from __future__ import annotations

import collections
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from vit_jax import config as configs
from vit_jax import trees
from vit_jax.config import parse
from vit_jax.io import cache, jsonfile
from vit_jax.layers.stack import Layered
from vit_jax.plan import hlo, program, schedule, topology
from vit_jax.plan.report import Exchange, Kernel, Memory, Plan, Time
from vit_jax.plan.topology import Topology
from vit_jax.train import inherit
from vit_jax.train.config import TrainConfig
from vit_jax.train.setup import Setup
from vit_jax.types import UserError

FOLDER, SUFFIX, KEPT = "plans", ".json", 10**8
"""Folder of the cache, and bytes of plans that are kept."""


def plan(
    config: str | Mapping[str, Any],
    where: str,
    *,
    changes: Mapping[str, Any] | None = None,
    examples: int | None = None,
    classes: int | None = None,
) -> Plan:
    """What a training step takes on other devices, by their compiler. Neither they nor the data need be here.

    Args:
      config: see :func:`vit_jax.train`.
      where: ``"v5e:16x16"``, ``"v5p:4x4x4"``, ``"v6e:4x4"`` for TPUs, which takes the extra ``tpu-compile``, or
        ``"cpu:8"``.
      changes: keys with other values.
      examples: of the training data, where that is not here.
      classes: of the training data, likewise.

    Returns:
      Memory, work, collectives and predicted time of a step. It is kept: the same question is answered at once.

    Raises:
      UserError: a mistake in the configuration; there is no such topology; the compiler is not installed.

    Example:
      >>> vj.plan("imagenet:vit_b16", "v5e:4x4").fits
      True
    """
    plain = configs.load(config) if isinstance(config, str) else configs.plain(config)
    raw = configs.change(plain, (changes or {}).items())
    place = kept(raw, where, examples, classes)
    if place is not None and (found := _read(place)) is not None:
        return found
    made = compiled(raw, topology.find(where), examples, classes)
    if place is not None:
        _write(place, made)
    return made


def compiled(raw: Mapping[str, Any], devices: Topology, examples: int | None, classes: int | None) -> Plan:
    """As :func:`plan` of a plain configuration, whatever is kept."""
    config = parse(TrainConfig, inherit.resolved(raw))
    config, notes = program.without_data(config, examples, classes)
    setup = program.setup_for(config, devices.devices)
    frozen, more = program.frozen_shapes(setup)
    return _plan(setup, devices, program.compiled(setup, frozen), program.per_device(setup, frozen), [*notes, *more])


def _plan(setup: Setup, devices: Topology, found: program.Compiled, parts: Mapping[str, int], notes: list[str]) -> Plan:
    chip, count = devices.chip, len(devices.devices)
    memory = Memory(parts, found.memory, found.needed, devices.memory, bool(found.text))
    parsed = hlo.parse(found.text)
    exchanges, kernels = _exchanges(parsed, devices, setup.mesh), [] if chip is None else schedule.kernels(parsed, chip)
    cycles = schedule.added(hlo.cycles(parsed), kernels)
    time, mfu, rate = None, None, None
    size, flops = setup.config.batch_size, setup.step_flops / count
    if chip is not None and found.text:
        time = _time(sum(cycles.values()) / chip.clock, exchanges, found.memory, chip.bandwidth)
        mfu = flops / chip.peak / time.most, flops / chip.peak / time.least
        rate = size / time.least / devices.hosts
    shapes = setup.batch_shapes
    image = sum(shapes[k].size * shapes[k].dtype.itemsize for k in shapes) / size
    state = jax.tree.leaves((setup.shapes, ()))
    return Plan(
        topology=devices.name,
        devices=count,
        hosts=devices.hosts,
        mesh=dict(setup.mesh.shape),
        settings=settings(setup.config),
        memory=memory,
        flops=flops,
        program_flops=hlo.matrix_flops(parsed),
        exchanges=exchanges,
        cycles=cycles,
        kernels=tuple(kernels),
        time=time,
        mfu=mfu,
        images_per_host=rate,
        bytes_per_host=rate and rate * image,
        checkpoint=sum(x.size * x.dtype.itemsize for x in state),
        notes=(*notes, *_assumptions(devices, parsed, kernels)),
    )


def _exchanges(parsed: hlo.Program, devices: Topology, mesh: Any) -> tuple[Exchange, ...]:
    table: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0, 0, 0])
    for e in hlo.collectives(parsed):
        sent, row = e.sent(len(devices.devices)), table[e.kind]
        seconds = 0.0 if devices.chip is None else sent / (devices.chip.link * devices.links(mesh, e.group))
        for i, value in enumerate((1, e.bytes, sent, seconds)):
            row[i] += e.times * value
    known = devices.chip is not None
    rows = [Exchange(k, int(n), int(b), int(s), t if known else None) for k, (n, b, s, t) in table.items()]
    return tuple(sorted(rows, key=lambda e: -e.sent))


def _time(compute: float, exchanges: tuple[Exchange, ...], memory: Mapping[str, int], bandwidth: float) -> Time:
    exchange = sum(e.seconds or 0.0 for e in exchanges)
    hbm = (memory["argument"] + memory["output"] + 2 * memory["temp"]) / bandwidth
    return Time(compute, exchange, hbm, max(compute, exchange, hbm), max(compute, hbm) + exchange)


def settings(config: TrainConfig) -> dict[str, Any]:
    """What of a run decides speed and memory and not its result, beside the batch."""
    out: dict[str, Any] = {"batch_size": config.batch_size, "accumulate": config.accumulate}
    for path, part in stacks(config.model).items():
        out |= {f"{path}.{key}": getattr(part, key) for key in ("scan", "remat")}
    return out


def stacks(model: Any, path: str = "model") -> dict[str, Any]:
    """Key of a configuration -> the part of a model that is made of blocks, which may be scanned and recomputed."""
    found = {path: model} if isinstance(model, Layered) else {}
    for name, value in trees.fields(model).items():
        if isinstance(value, nn.Module):
            found |= stacks(value, f"{path}.{name}")
    return found


def _assumptions(devices: Topology, parsed: hlo.Program, kernels: Sequence[Kernel]) -> list[str]:
    chip, notes = devices.chip, []
    if chip is None:
        notes.append("A compiler for CPUs estimates no cycles: there is no predicted time.")
    elif parsed.entry:
        notes.append(
            f"Assumed of {chip.name}: {chip.clock / 1e9:.2f} GHz, {chip.peak / 1e12:.0f} TFLOP/s bfloat16, "
            f"{chip.bandwidth / 1e9:,.0f} GB/s of HBM, {chip.link / 1e9:.0f} GB/s a link and direction; a collective "
            f"uses every axis that its devices lie along, in both directions where {chip.wraps} chips close a ring; no "
            "time is lost to latency, waiting for input or other hosts. Cycles are the compiler's expectation, not a "
            "measurement."
        )
        notes.append(f"A host is a process with {len(devices.devices) // devices.hosts} chips.")
    if loops := hlo.unknown_loops(parsed) if parsed.entry else 0:
        notes.append(f"{loops} loops do not show how often they run and count once.")
    return notes + schedule.notes(kernels)


def kept(raw: Mapping[str, Any], where: str, *options: Any) -> pathlib.Path | None:
    """Where the answer to a question is kept; None for one that holds values or files whose content is not known."""
    if raw.get("imports"):
        return None
    try:
        words = json.dumps([raw, where, options, _versions()], sort_keys=True)
    except TypeError:
        return None
    return cache.folder(FOLDER) / (hashlib.sha256(words.encode()).hexdigest()[:32] + SUFFIX)


def _versions() -> dict[str, str]:
    """Of all that a program depends on, the compilers' settings among it; of this package the digest of its files."""
    found = {"vit_jax": cache.code()} | {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    for name in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _read(place: pathlib.Path) -> Plan | None:
    try:
        found = Plan.of(jsonfile.read(place))
    except (UserError, KeyError, TypeError):
        return None
    cache.used(place)
    return found


def _write(place: pathlib.Path, made: Plan) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        jsonfile.write(place, made.summary())
        cache.trim(place.parent, f"*{SUFFIX}", KEPT)
    except OSError:
        return  # the answer is there, and will be found out anew the next time
