"""The one training loop. What varies is a value: the configuration's objects, and hooks."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm.contrib.logging import logging_redirect_tqdm

from vit_jax import checkpoint, interrupts, sharding
from vit_jax.checkpoint import Checkpoints
from vit_jax.config import Duration, parse, resumable_keys
from vit_jax.data.loader import Batches
from vit_jax.evals import Report
from vit_jax.imports import changed, texts
from vit_jax.io import atomic
from vit_jax.metrics import FILE, MetricsWriter, read
from vit_jax.models import cost
from vit_jax.report import plots
from vit_jax.train import inherit, inputs, start, workdir
from vit_jax.train.config import TrainConfig
from vit_jax.train.patience import Patience
from vit_jax.train.progress import Progress, say, table
from vit_jax.train.setup import Setup, build
from vit_jax.train.state import TrainState
from vit_jax.types import UserError

AHEAD = 2
"""Steps the host may be ahead of the device: enough to hide dispatch, few enough to measure waiting for input."""

LOG_EVERY, POINTS = 10, 20
"""Steps from one row of the log to the next, where a run is long enough for as many rows as that."""


class Interrupted(UserError):
    """A second Ctrl-C: wherever it fell, threads of the storage may be left that wait for ever."""


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
    path = workdir.place(folder)
    with workdir.lock(path):
        try:
            with interrupts.delivered():
                return _run(raw, path, hooks)
        except KeyboardInterrupt:
            kept = checkpoint.kept(path / checkpoint.FOLDER)
            raise Interrupted(f"interrupted; {kept}, and the same command goes on from what there is.") from None


def _run(raw: Mapping[str, Any], path: pathlib.Path, hooks: Sequence[Hook]) -> Result:
    raw = inherit.resolved(raw)
    config = parse(TrainConfig, raw)
    recorded = [*texts(raw), *workdir.imported(path)]
    raw = {**raw, "imports": config.imports} if config.imports else raw
    workdir.check(path, raw, tuple(resumable_keys(config)))
    stored = workdir.complete(config)  # what a default is may change from version to version
    for logger in config.loggers if not jax.process_index() else ():
        logger.check()
    setup = build(inherit.with_tokenizer(config, path))
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
    state, report = _train(setup, path, state, about, hooks)
    if report is None:  # the run had ended before; its last checkpoint is evaluated again
        report = setup.evaluate(state.eval_params)
    _finish(setup, path, int(state.step), report)
    return Result(setup, state, report, raw)


def _train(
    setup: Setup, path: pathlib.Path, state: TrainState, about: Mapping[str, Any], hooks: Sequence[Hook]
) -> tuple[TrainState, Report | None]:
    c, first, total, report = setup.config, int(state.step), setup.total_steps, None
    log_every = c.log_every or Duration(max(1, min(LOG_EVERY, total // POINTS)))
    lengths = {"log": log_every, "eval": c.eval_every, "checkpoint": c.checkpoint_every}
    every = {name: max(1, setup.steps_of(length)) for name, length in lengths.items()}
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(_signals())
        checkpoints = stack.enter_context(Checkpoints(path, keep=c.keep, best=c.best))
        writer = stack.enter_context(MetricsWriter(path, c.loggers))
        patience = Patience.resumed(c.best, c.patience, _resume_log(writer, path, first))
        writer.open(about["config"])
        _show_inputs(setup, path, first)
        batches = stack.enter_context(contextlib.closing(setup.train_batches(first)))
        bar = stack.enter_context(contextlib.closing(Progress(first, total, len(setup.train) / c.batch_size)))
        stack.enter_context(logging_redirect_tqdm())  # what is said while the step is compiled stays above the bar
        stack.enter_context(jax.set_mesh(setup.mesh))
        meter = Meter(setup, path)
        for step in range(first + 1, (first if patience.over else total) + 1):
            with meter.waiting():
                batch = next(batches)
            state, metrics = setup.step(state, sharding.put(batch, setup.mesh))
            meter.push(step, metrics)
            bar.step()
            for hook in hooks:
                if extra := hook(StepEvent(setup, path, step, state)):
                    writer.write(step, extra)
            stop = bool(stopped)  # read once: what is saved and what is said are to agree
            due = {name: step % n == 0 or step == total for name, n in every.items()}
            due["checkpoint"] |= due["eval"] or stop
            values = meter.flush() if any(due.values()) else {}  # raises on non-finite values: none is ever saved
            row: dict[str, float] = {}
            if due["log"]:
                writer.write(step, {f"train/{k}": v for k, v in values.items()} | (speed := meter.speed()))
                bar.show(step, values | speed)
            if due["eval"]:
                report = setup.evaluate(state.eval_params)
                row = report.prefixed("val")
                patience.see(step, row)
                writer.write(step, row)
                say(f"{bar.at(step)}: " + " ".join(f"{k} {v:.4g}" for k, v in row.items()))
            if due["checkpoint"]:
                writer.sync()  # a checkpoint never has fewer rows than steps, whatever loses power
                meta = {**about, "rows": writer.rows, "patience": patience.meta()}
                checkpoints.save(step, start.items(state), meta, row)
                meter.restart()
            if stop and step < total:
                checkpoints.wait()
                raise UserError(f"stopped at step {step} of {total}; the same command resumes there.")
            if patience.over:
                break
        if patience.over and (end := int(state.step)) < total:
            say(f"stopped early at {bar.at(end)}: {patience}")
        _say_left_out(batches, c)
    return state, report


def _say_left_out(batches: Batches, c: TrainConfig) -> None:
    if batches.skipped:
        say(f"{batches.skipped} training examples are unreadable and were left out")
    if batches.truncated and c.data.text:
        room = c.data.text.length
        say(f"{batches.truncated:,} captions are longer than data.text.length={room} tokens and were cut")


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
    if writer.rows < logged and not jax.process_index():
        say(
            f"{path / FILE} has {writer.rows} of at least {logged} rows up to step {first}: curves and the best value "
            "come from what is left"
        )
    return meta


def _show_inputs(setup: Setup, path: pathlib.Path, first: int) -> None:
    """Draws what the model sees at step ``first``, once in the life of a run."""
    if (
        setup.config.plots
        and first < setup.total_steps
        and not jax.process_index()
        and not (path / inputs.FILE).exists()
    ):
        with atomic.writing(str(path / inputs.FILE)):
            inputs.draw(setup, first, path / inputs.FILE)
        say(f"{path / inputs.FILE} shows what the first step sees")


def _finish(setup: Setup, path: pathlib.Path, step: int, report: Report) -> None:
    if jax.process_index():
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


class Meter:
    """Keeps metrics on the device until they are due, bounds how far the host runs ahead, and measures speed."""

    def __init__(self, setup: Setup, workdir: pathlib.Path) -> None:
        self._setup, self._workdir = setup, workdir
        self._pending: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self.restart()

    @functools.cached_property
    def _steps_per_second(self) -> float:
        """Optimizer steps a second at the devices' peak: found out at the first log, for a CPU by measuring."""
        device = self._setup.mesh.devices.flat[0]
        devices = 1 if device.platform == "cpu" else self._setup.mesh.size  # CPU devices share the cores
        peak = devices * cost.peak(device, self._setup.model.dtype)
        return peak / self._setup.step_flops

    def restart(self) -> None:
        """Forgets the time that passed, after an evaluation for instance."""
        self._since, self._waited, self._steps = time.perf_counter(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside is time without input."""
        begun = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begun

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step; waits for the one ``AHEAD`` steps before."""
        self._pending.append((step, metrics))
        self._steps += 1
        if len(self._pending) > AHEAD:
            jax.block_until_ready(self._pending[-1 - AHEAD][1])

    def flush(self) -> dict[str, float]:
        """The latest step's values, after a look at all of them.

        Raises:
          UserError: a loss or a gradient is not finite; it names the step and the first such parameter.
        """
        steps = [(step, jax.device_get(metrics)) for step, metrics in self._pending]
        self._pending.clear()
        values: dict[str, float] = {}
        for step, metrics in steps:
            finite = metrics.pop("finite")
            if not (finite.all() and np.isfinite([metrics["loss"], metrics["update_norm"]]).all()):
                kept = checkpoint.kept(self._workdir / checkpoint.FOLDER)
                raise UserError(_blame(self._setup, step, float(metrics["loss"]), finite, kept))
            values = {k: float(v) for k, v in metrics.items()}
        return values

    def speed(self) -> dict[str, float]:
        """Images per second, MFU and share of time waiting for input, since the last call."""
        passed = max(time.perf_counter() - self._since, 1e-9)
        row = {
            "speed/images_per_s": self._steps * self._setup.config.batch_size / passed,
            "speed/mfu": self._steps / passed / self._steps_per_second,
            "speed/waiting": self._waited / passed,
        }
        self.restart()
        return row


def _blame(setup: Setup, step: int, loss: float, finite: np.ndarray, kept: str) -> str:
    bad = list(itertools.compress(setup.trained, ~finite))
    where = "the update is not finite"
    if bad:
        where = f"the gradient of {bad[0]} is the first of {len(bad)} that are not finite"
    return (
        f"step {step}: {where} (loss {loss:g}); {kept}. Lower optim.lr, lengthen optim.warmup or set optim.clip_norm."
    )


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM fill the list instead of killing; the loop then saves and stops. A second one kills."""
    received: list[int] = []

    def handle(number: int, _: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    try:
        old = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, of a notebook server for instance
        old = {}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
