"""The one training loop. What varies is a value: the configuration's objects, and hooks."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm.contrib.logging import logging_redirect_tqdm

from vit_jax import checkpoint, hosts, interrupts, sharding
from vit_jax.checkpoint import Checkpoints
from vit_jax.config import Duration, parse, resumable_keys
from vit_jax.evals import Report
from vit_jax.imports import changed, texts
from vit_jax.io import atomic
from vit_jax.metrics import FILE, MetricsWriter, read
from vit_jax.report import plots
from vit_jax.train import agreement, inherit, inputs, profile, start, workdir
from vit_jax.train.agreement import Agreement, Part
from vit_jax.train.config import TrainConfig
from vit_jax.train.goodput import Goodput
from vit_jax.train.meter import AHEAD, Meter
from vit_jax.train.patience import Patience
from vit_jax.train.progress import Progress, say, table
from vit_jax.train.setup import Setup, build, check_best
from vit_jax.train.state import TrainState
from vit_jax.types import Stopped, Stuck

LOG_EVERY, POINTS = 10, 20
"""Steps from one row of the log to the next, where a run is long enough for as many rows as that."""


class Interrupted(Stuck):
    """A second Ctrl-C: wherever it fell, threads of the storage may be left that wait for ever."""

    status = 1


@dataclasses.dataclass(frozen=True)
class StepEvent:
    """What a hook sees after a step: ``step`` optimizer steps were taken and led to ``state``."""

    setup: Setup
    workdir: pathlib.Path
    step: int
    state: TrainState


Hook = Callable[[StepEvent], Mapping[str, float] | None]
"""Called after every step; what it returns is written to ``metrics.jsonl``. The state is donated to the next step."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run leads to.

    Attributes:
      setup: what the run was made of: model, data, step.
      state: the final one.
      report: of the last evaluation.
      config: the plain configuration that the run was given.
    """

    setup: Setup
    state: TrainState
    report: Report
    config: Mapping[str, Any]


def run(raw: Mapping[str, Any], folder: str | os.PathLike[str], hooks: Sequence[Hook] = ()) -> Result:
    """Trains to the end, from where the workdir's last checkpoint left off.

    Args:
      raw: plain configuration, as ``vit_jax.config.load`` returns it.
      folder: the workdir.
      hooks: called after every step, in order.

    Raises:
      UserError: whatever the user got wrong (before the first step), another run there, non-finite values, a full disk,
        an interruption.
    """
    path, goodput = workdir.place(folder), Goodput(time.monotonic())
    with workdir.lock(path):
        try:
            with interrupts.delivered():
                return _run(raw, path, hooks, goodput)
        except KeyboardInterrupt:
            kept = checkpoint.kept(path / checkpoint.FOLDER)
            raise Interrupted(f"interrupted; {kept}, and the same command goes on from what there is.") from None


def _run(raw: Mapping[str, Any], path: pathlib.Path, hooks: Sequence[Hook], goodput: Goodput) -> Result:
    raw = inherit.resolved(raw)
    config = parse(TrainConfig, raw)
    recorded = [*texts(raw), *workdir.imported(path)]
    raw = {**raw, "imports": config.imports} if config.imports else raw
    workdir.check(path, raw, tuple(resumable_keys(config)))
    stored = workdir.complete(config)  # what a default is may change from version to version
    for logger in config.loggers if hosts.first() else ():
        logger.check()
    check_best(config)
    with goodput.spent("start"):
        setup = build(inherit.with_tokenizer(config, path))
        agreement.check_same(start.facts(setup, stored))
        state, origin = start.start(setup, path)
    workdir.claim(path, stored)
    for note in [*changed(config.imports, recorded), *setup.notes]:
        say(note)
    parameters = sum(x.size for x in jax.tree.leaves(setup.shapes.params))
    say(
        f"{parameters:,} parameters, {len(setup.train):,} training and {len(setup.val):,} validation examples, "
        f"{setup.total_steps:,} steps of {setup.config.batch_size}; {origin}"
    )
    if whole := sharding.replicated(setup.shapes, setup.shardings, setup.mesh):
        say(f"{len(whole)} arrays of 4 MiB or more divide by no mesh axis and are replicated, {whole[0]} for one")
    about = start.meta(setup, stored, workdir.provenance())
    with profile.hooks(config.profile, path) as tracing:
        state, report = _train(setup, path, state, about, [*hooks, *tracing], goodput)
    if report is None:  # the run had ended before; its last checkpoint is evaluated again
        report = setup.evaluate(state.eval_params)
    _finish(setup, path, int(state.step), report)
    return Result(setup, state, report, raw)


def _train(
    setup: Setup, path: pathlib.Path, state: TrainState, about: Mapping[str, Any], hooks: Sequence[Hook], clock: Goodput
) -> tuple[TrainState, Report | None]:
    c, first, total, report, every = setup.config, int(state.step), setup.total_steps, None, _lengths(setup)
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(interrupts.asked())
        checkpoints = stack.enter_context(Checkpoints(path, keep=c.keep, best=c.best))
        writer = stack.enter_context(MetricsWriter(path, c.loggers))
        patience = Patience.resumed(c.best, c.patience, meta := _resume_log(writer, path, first))
        clock.resume(meta.get("goodput", {}))
        writer.open(about["config"])
        _show_inputs(setup, path, first)
        batches = stack.enter_context(contextlib.closing(setup.train_batches(first)))
        bar = stack.enter_context(contextlib.closing(Progress(first, total, len(setup.train) / c.batch_size)))
        stack.enter_context(logging_redirect_tqdm())  # what is said while the step is compiled stays above the bar
        stack.enter_context(jax.set_mesh(setup.mesh))
        meter, agreed = Meter(setup, path, clock), Agreement(setup.mesh, AHEAD)
        for step in range(first + 1, (first if patience.over else total) + 1):
            with meter.waiting():
                batch = next(batches)
            with clock.spent("compile" if step == first + 1 else "step"):
                state, metrics = setup.step(state, sharding.put(batch, setup.mesh))
            if step == first + 1:
                meter.restart()  # compiling tells nothing of speed
            meter.push(step, metrics)
            bar.step()
            for extra in filter(None, (hook(StepEvent(setup, path, step, state)) for hook in hooks)):
                writer.write(step, extra)
            agreed.tell(Part(bool(stopped), *meter.times(), *batches.news()))
            batches.check_skipped(agreed.unreadable)
            stop = bool(agreed.stop)
            due = {name: step % n == 0 or step == total for name, n in every.items()}
            due["checkpoint"] |= due["eval"] or stop
            values = meter.flush() if any(due.values()) else {}  # raises on non-finite values: none is ever saved
            row: dict[str, float] = {}
            if due["log"]:
                speed = meter.speed() | agreed.times() | clock.row()
                writer.write(step, {f"train/{k}": v for k, v in values.items()} | speed)
                bar.show(step, values | speed)
            if due["eval"]:
                with clock.spent("evaluation"):
                    report = setup.evaluate(state.eval_params)
                row = report.prefixed("val")
                patience.see(step, row)
                writer.write(step, row)
                say(f"{bar.at(step)}: " + " ".join(f"{k} {v:.4g}" for k, v in row.items()))
            if due["checkpoint"]:
                with clock.spent("checkpoint"):
                    writer.sync()  # a checkpoint never has fewer rows than steps, whatever loses power
                    kept = {"rows": writer.rows, "patience": patience.meta(), "goodput": clock.meta()}
                    checkpoints.save(step, start.items(state), {**about, **kept}, row)
                meter.restart()
            if stop and step < total:
                checkpoints.wait()
                raise Stopped(f"stopped at step {step} of {total}{agreed.asked()}; the same command resumes there.")
            if patience.over:
                break
        agreed.drain()
        _say_end(bar, int(state.step), total, patience, agreed, clock, c)
    return state, report


def _say_end(
    bar: Progress, step: int, total: int, patience: Patience, agreed: Agreement, clock: Goodput, c: TrainConfig
) -> None:
    if patience.over and step < total:
        say(f"stopped early at {bar.at(step)}: {patience}")
    if agreed.unreadable:
        say(f"{len(agreed.unreadable)} training examples are unreadable and were left out")
    if agreed.truncated and c.data.text:
        room = c.data.text.length
        say(f"{agreed.truncated:,} captions are longer than data.text.length={room} tokens and were cut")
    say(f"the run took {clock}")


def _lengths(setup: Setup) -> dict[str, int]:
    """How many steps lie between rows of the log, evaluations and checkpoints."""
    c = setup.config
    log_every = c.log_every or Duration(max(1, min(LOG_EVERY, setup.total_steps // POINTS)))
    lengths = {"log": log_every, "eval": c.eval_every, "checkpoint": c.checkpoint_every}
    return {name: max(1, setup.steps_of(length)) for name, length in lengths.items()}


def _resume_log(writer: MetricsWriter, path: pathlib.Path, first: int) -> Mapping[str, Any]:
    """Prepares the log of a run that goes on from step ``first``; says what of it is dropped, and what is missing.

    Returns:
      What the checkpoint of that step says of itself; nothing where a run only starts.
    """
    if dropped := writer.truncate(first):
        say(f"dropped {dropped} rows of metrics.jsonl that are computed again from step {first}")
    folder = path / checkpoint.FOLDER / str(first)  # of a run that only starts, there is none
    meta = checkpoint.read_item(folder, "meta") if folder.exists() else {}
    logged = meta.get("rows", 1 if meta else 0)
    if writer.rows < logged and hosts.first():
        say(
            f"{path / FILE} has {writer.rows} of at least {logged} rows up to step {first}: curves and the best value "
            "come from what is left"
        )
    return meta


def _show_inputs(setup: Setup, path: pathlib.Path, first: int) -> None:
    """Draws what the model sees at step ``first``, once in the life of a run."""
    if setup.config.plots and first < setup.total_steps and hosts.first() and not (path / inputs.FILE).exists():
        with atomic.writing(str(path / inputs.FILE)):
            inputs.draw(setup, first, path / inputs.FILE)
        say(f"{path / inputs.FILE} shows what the first step sees")


def _finish(setup: Setup, path: pathlib.Path, step: int, report: Report) -> None:
    if not hosts.first():
        return
    rows, name, found = read(path), setup.config.best, report.prefixed("val")
    sign, last = checkpoint.sign(name), {"step": step, name: np.nan, **found}
    known = [row for row in [*rows, last] if np.isfinite(row.get(name, np.nan))]  # the log may be lost
    best = max(known, key=lambda row: sign * row[name], default=last)
    drawn, summary = setup.config.plots, {"step": best["step"], name: best[name]}
    report.save(path, setup.train.info.class_names, plots=drawn, step=step, best=summary)
    if drawn:
        with atomic.writing(str(path / "curves.png")):
            plots.curves(rows, path / "curves.png")
    say(table({**found, f"best {name}": f"{summary[name]:.6g} at step {best['step']}"}))
    say(f"results.json{', curves.png and more are' if drawn else ' is'} in {path}")
