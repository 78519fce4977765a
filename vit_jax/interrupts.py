"""Ctrl-C that arrives as ``KeyboardInterrupt``, wherever Python is at that moment."""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator

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
