"""Timing candidates that live in processes of their own, in turn: their thread pools and memory do not meet.

A side is a program that calls :func:`serve`; :class:`Side` starts it and asks for one round after the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.bench.timing import Timing
from vit_jax.io import jsonfile
from vit_jax.types import UserError


class Side:
    """A candidate in a process of its own, which begins to make itself ready at once.

    Args:
      command: the program and its arguments; it calls :func:`serve`.
      seconds: after which it is ended, whatever it does.
    """

    def __init__(self, command: Sequence[str], seconds: float) -> None:
        self._process = subprocess.Popen(list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._limit = threading.Timer(max(seconds, 0), self._process.kill)
        self._limit.daemon = True
        self._limit.start()

    def answer(self) -> Any:
        """Waits for the next answer; the first comes unasked once the side is ready.

        Raises:
          UserError: the process has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise UserError(f"the process of a candidate ended with exit code {code}; its output says why.")
        return jsonfile.loads(line)

    def ask(self, word: str) -> Any:
        """Sends a word and waits for the answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer is the error
            print(word, file=self._process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        """Ends the process."""
        self._limit.cancel()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # of a word that nobody read
                pipe.close()


def serve(make: Callable[[], tuple[Callable[[], Any], Callable[[Any], Any]]], facts: Callable[[], Any]) -> None:
    """Says how many seconds it took to be ready, then answers "time N" (seconds of one of N calls) and "facts".

    Args:
      make: returns what starts one computation and returns a handle, and what waits for a handle.
      facts: JSON about this process when all has been timed, as its peak of memory.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    start = time.perf_counter()
    run, wait = make()
    for _ in range(3):
        wait(run())
    print(time.perf_counter() - start, file=answers, flush=True)
    for line in sys.stdin:
        word, *number = line.split()
        if word == "facts":
            print(json.dumps(facts()), file=answers, flush=True)
            continue
        start = time.perf_counter()
        for _ in range(int(number[0])):
            handle = run()
        wait(handle)
        print((time.perf_counter() - start) / int(number[0]), file=answers, flush=True)


def alternate(sides: Mapping[str, Side], rounds: int, calls: int) -> dict[str, Timing]:
    """Times every side once a round, ``calls`` calls each; all of them are ready before."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(float(side.ask(f"time {calls}")))
    return {name: Timing(np.asarray(s)) for name, s in seconds.items()}
