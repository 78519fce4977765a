"""What the storage prints of reads and writes that it gave up: the first error is raised, and is all that matters."""

from __future__ import annotations

import gc
import logging
import re
import sys
import threading
import traceback
from typing import Any

from vit_jax.io import atomic

GAVE_UP = threading.Event()
"""Set once a write was given up. What the storage then leaves can wait for ever as Python ends, while it destroys it: a
command leaves without that.
"""


class _Hook:
    """Hands on what :mod:`sys` is to print, but for what threads of the storage say of an event loop that is gone."""

    def __init__(self, shown: Any) -> None:
        self.shown = shown

    def __call__(self, unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            self.shown(unraisable)


def hush() -> None:
    """Keeps it off the terminal from here on; asked before anything is read or written, as often as one likes.

    The storage abandons an event loop when a read or a write fails, and each of the others, as it ends, finds that the
    loop is closed; and asyncio logs the errors that nobody fetched.
    """
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)
    logging.getLogger("asyncio").addFilter(_heard)  # once: it is the same


def _heard(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if "exception was never retrieved" not in record.getMessage() or not isinstance(error, Exception):
        return True
    files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    of_storage = "os_error_code" in str(error) or any(re.search(r"\b(orbax|tensorstore)\b", file) for file in files)
    return not (of_storage or atomic.is_full(error))


def forget_failed_read() -> None:
    """Collects the coroutines that orbax abandons when a read fails: later they would litter the terminal."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect(1)  # they are young; all objects of a large program would take seconds
    finally:
        sys.unraisablehook = hook
