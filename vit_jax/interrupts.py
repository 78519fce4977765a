"""Signals: Ctrl-C that arrives wherever Python is at that moment, and what asks a run to stop."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

ASKS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that ask a run to stop: Ctrl-C, a scheduler, a terminal that was closed, Slurm's notice beforehand."""

AGAIN = 0.02
"""Seconds until an interruption that was lost comes again."""


@contextlib.contextmanager
def delivered() -> Iterator[None]:
    """A ``KeyboardInterrupt`` raised inside comes out, where else it would be ignored or become another error.

    Python ignores what is raised in finalizers and in callbacks of weak references and of the garbage collector, of
    which JAX has one: SIGINT then comes once more, a little later. In comparisons of its own JAX makes a
    ``ValueError`` of whatever is raised.
    """
    before, inside = sys.unraisablehook, True

    def again() -> None:
        time.sleep(AGAIN)
        if inside:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def hook(ignored: sys.UnraisableHookArgs) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            _thread.start_new_thread(again, ())  # threading takes a lock that the code around may hold
        else:
            before(ignored)

    sys.unraisablehook = hook
    try:
        yield
    except Exception as e:
        cause: BaseException | None = e
        while cause and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__ or cause.__context__
        if cause:
            raise KeyboardInterrupt from e
        raise
    finally:
        inside = False
        sys.unraisablehook = before


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Inside, SIGINT waits for the end: extension modules that are being imported make an ``ImportError`` of it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextlib.contextmanager
def asked() -> Iterator[list[int]]:
    """Inside, each of :data:`ASKS` fills the list instead of ending the process, which stops where that is safe.

    A Ctrl-C after any of them is a ``KeyboardInterrupt``: schedulers send theirs several times, people mean it. What is
    ignored stays so, as SIGHUP under ``nohup``, and SIGUSR1 stays with whoever has a use for it. Once a terminal is
    closed, nothing more is printed there, which would be an error.
    """
    received: list[int] = []
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def handle(number: int, _: Any) -> None:
        if number == signal.SIGHUP:
            _silence(terminals)
        received.append(number)
        if number == signal.SIGINT and len(received) > 1:
            raise KeyboardInterrupt

    with _handled({number: handle for number in ASKS if _may_take(number)}):
        yield received


@contextlib.contextmanager
def left_when_asked(status: int, sentence: str, *, last: bool = False) -> Iterator[None]:
    """Inside, :data:`ASKS` but for Ctrl-C end the process at once with ``status``, after a sentence.

    Args:
      status: of the process.
      sentence: on its standard error.
      last: whether the process ends afterwards. None of them then keeps it from the status that it has by then.
    """

    def leave(*_: Any) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{sentence}\n".encode())
        os._exit(status)

    handlers: dict[int, Any] = {number: leave for number in ASKS if _may_take(number)}
    handlers[signal.SIGINT] = signal.getsignal(signal.SIGINT) or signal.default_int_handler
    with _handled(handlers, signal.SIG_IGN if last else None):
        yield


@contextlib.contextmanager
def _handled(handlers: dict[int, Any], afterwards: Any = None) -> Iterator[None]:
    """Inside, signals have these handlers, and ``afterwards`` that one, or those from before for None."""
    try:
        old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    except ValueError:  # not in the main thread, of a notebook server for instance
        old = {}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler if afterwards is None else afterwards)


def _may_take(number: int) -> bool:
    """Whether nobody else has a use for a signal that not everybody knows as a wish to stop."""
    now: Any = signal.getsignal(number)
    return (
        number in (signal.SIGINT, signal.SIGTERM) or now == signal.SIG_DFL or getattr(now, "__module__", "") == __name__
    )


def _silence(descriptors: list[int]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
