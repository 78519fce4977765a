"""A trace of some steps for XProf, as ``--config.profile='100:105'`` asks for."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from vit_jax import hosts
from vit_jax.config import StepRange
from vit_jax.train.progress import say
from vit_jax.types import UsageError, UserError

FOLDER = "profile"
"""Where in the workdir traces are; on several hosts each has a folder of its own below."""
MOST = 100
"""Steps of the longest trace: a trace of more is too large to be looked at."""


def check(steps: StepRange | None, total: int) -> None:
    """Raises UsageError if a run of ``total`` steps cannot be traced so: before its first step, not at step 100."""
    if steps is None:
        return
    if steps.first == 1:
        raise UsageError(f"profile='{steps}' begins with the step that compiles; begin at step 2 or later.")
    if steps.last - steps.first >= MOST:
        raise UsageError(
            f"profile='{steps}' are {steps.last - steps.first + 1:,} steps; a trace has at most {MOST}, such as "
            f"'{steps.first}:{steps.first + MOST - 1}', and 5 say the same."
        )
    if steps.last > total:
        raise UsageError(f"profile='{steps}' ends after the run, which has {total:,} steps.")


@contextlib.contextmanager
def hooks(steps: StepRange | None, workdir: pathlib.Path) -> Iterator[list[Callable[[Any], None]]]:
    """The hooks of the training loop that trace ``steps``; what is being traced when the block ends is written, too."""
    trace = None if steps is None else Trace(steps, workdir / FOLDER)
    try:
        yield [trace] if trace else []
    finally:
        if trace:
            trace.stop()


class Trace:
    """A hook that traces the steps after those that it is called for, each marked by its number.

    Of a run that goes on in the midst of them, those that are left are traced.
    """

    def __init__(self, steps: StepRange, folder: pathlib.Path) -> None:
        self._steps, self._done = steps, None
        self._folder = folder / f"host_{hosts.index()}" if hosts.count() > 1 else folder
        self._marks = contextlib.ExitStack()
        self._first: int | None = None

    def __call__(self, event: Any) -> None:
        """``event.step`` steps were taken and led to ``event.state``."""
        following = event.step + 1
        self._marks.close()
        if self._first is None and self._steps.first <= following <= self._steps.last:
            jax.block_until_ready(event.state)  # so that no step before is in the trace
            self._start(following)
        if self._first is None:
            return
        self._done = event.step
        if following > self._steps.last:
            jax.block_until_ready(event.state)
            self.stop()
        else:
            self._marks.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=following))

    def _start(self, step: int) -> None:
        try:
            jax.profiler.start_trace(self._folder)
        except RuntimeError as e:
            raise UserError(f"profile='{self._steps}': this process is being traced already ({e}).") from None
        self._first = step

    def stop(self) -> None:
        """Writes the trace, if there is one."""
        first, self._first = self._first, None
        self._marks.close()
        if first is None:
            return
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as e:  # the run is worth more than its trace
            say(f"the trace of its steps is not written: {e}")
            return
        say(
            f"{self._folder} has the trace of steps {first} to {self._done}; look at it with xprof --logdir "
            f"{self._folder} (pip install xprof), or tensorboard --logdir {self._folder}"
        )
