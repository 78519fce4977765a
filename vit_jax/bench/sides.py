"""Timing candidates that live in processes of their own, in turn: their thread pools and memory do not meet.

A side is a program that calls :func:`serve`; :class:`Side` starts it and asks for one round after the other. While one
computes, the others wait for a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.bench.timing import Timing
from vit_jax.io import jsonfile
from vit_jax.io.installation import for_children
from vit_jax.types import UserError


class Side:
    """A candidate in a process of its own, which begins to make itself ready at once.

    Ctrl-C does not reach it: whoever started it gets that, and :meth:`close` ends it with all that it has started. It
    ends by itself when that one is no more.

    Args:
      command: the program and its arguments; it calls :func:`serve`.
      seconds: after which it is ended, whatever it does; None for never.
    """

    def __init__(self, command: Sequence[str], seconds: float | None = None) -> None:
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | for_children(),
        )  # fmt: skip
        self._limit = threading.Timer(max(seconds or 0, 0), self._kill)
        self._limit.daemon = True
        if seconds is not None:
            self._limit.start()

    def answer(self) -> Any:
        """Waits for the next answer; the first comes unasked once the side is ready.

        Raises:
          UserError: the process has ended, or says why it cannot compute.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise UserError(f"the process of a candidate ended with exit code {code}; its output says why.")
        answer = jsonfile.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise UserError(answer["error"])
        return answer

    def ask(self, word: str) -> Any:
        """Sends a word and waits for the answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer is the error
            print(word, file=self._process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        """Ends the process."""
        self._limit.cancel()
        self._kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # of a word that nobody read
                pipe.close()

    def _kill(self) -> None:
        if not hasattr(os, "killpg"):
            return self._process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def serve(make: Callable[[], tuple[Callable[[], Any], Callable[[Any], Any]]], facts: Callable[[], Any]) -> None:
    """Says how many seconds it took to be ready, then answers "time N" and "facts".

    The answer to "time N" is how long one of N calls takes: seconds, and seconds of all the processor's cores.

    Args:
      make: returns what starts one computation and returns a handle, and what waits for a handle; a
        :class:`vit_jax.types.UserError` of it is answered, and is one where the side is asked.
      facts: JSON about this process, as its peak of memory.
    """
    say, start = answering(), time.perf_counter()
    try:
        run, wait = make()
    except UserError as e:
        return say({"error": str(e)})
    for _ in range(3):
        wait(run())
    say(time.perf_counter() - start)
    for line in sys.stdin:
        word, *number = line.split()
        if word == "facts":
            say(facts())
            continue
        before = np.array([time.perf_counter(), time.process_time()])
        for _ in range(int(number[0])):
            handle = run()
        wait(handle)
        taken = (np.array([time.perf_counter(), time.process_time()]) - before) / int(number[0])
        say(taken.tolist())


def answering() -> Callable[[Any], None]:
    """What sends JSON to whoever started this process; what libraries print goes where errors go."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return lambda value: print(json.dumps(value), file=answers, flush=True)


@contextlib.contextmanager
def started(commands: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Side]]:
    """The sides by their names once all of them are ready; they end with the block.

    Raises:
      UserError: one could not make itself ready.
    """
    with contextlib.ExitStack() as stack:
        sides: dict[str, Side] = {}
        for name, command in commands.items():
            sides[name] = Side(command)
            stack.callback(sides[name].close)
        for side in sides.values():
            side.answer()
        yield sides


def alternate(sides: Mapping[str, Side], rounds: int, calls: int = 1) -> dict[str, Timing]:
    """Times every side once a round, ``calls`` calls each; all of them are ready before."""
    taken: dict[str, list[list[float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            taken[name].append(side.ask(f"time {calls}"))
    return {name: Timing(*np.asarray(rows, float).T) for name, rows in taken.items()}
