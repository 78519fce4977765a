"""Having a place at an address alone: a file there that names its owner, who renews it.

No store has locks that end with their process. So the file is made where none is, which of several only one can; it is
renewed every :data:`BEAT` seconds; and whoever finds one that is not renewed takes it for that of a dead process. One
that was only slow finds another's name in it before it writes again, and stops.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from vit_jax.io import jsonfile, store
from vit_jax.types import UserError

BEAT = 20.0
"""Seconds after which an owner renews the file."""
STALE = 70.0
"""Seconds for which one looks whether an owner does."""
OLD = 600.0
"""Seconds after which it need not be looked, by the clocks of both machines."""

log = logging.getLogger(__name__)


class Taken(UserError):
    """Another process has the place now."""


class Lease:
    """The place while the block lasts.

    Args:
      place: what it is called.
      address: of the file.
      also: called from time to time by the thread that renews it.
      every: seconds from one such call to the next.

    Raises:
      UserError: another has it; it cannot be written.
    """

    def __init__(self, place: str, address: str, also: Callable[[], None], every: float) -> None:
        self._place, self._address, self._also, self._every = place, address, also, every
        self._token, self._beats = uuid.uuid4().hex, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="the lease of a run", daemon=True)

    def __enter__(self) -> Lease:
        try:
            self._take()
        except OSError as e:
            raise UserError(f"workdir {self._place!r} cannot be written ({e.strerror}).") from e
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._read().get("token") == self._token:
                store.remove([self._address])

    def check(self) -> None:
        """Returns where this process still has the place.

        Raises:
          Taken: another has it, as this one seemed dead.
          OSError: it cannot be told.
        """
        found = self._read()
        if found and found.get("token") != self._token:
            raise Taken(f"{self._place!r} was taken by {_who(found)}: this run stops, and writes no more.")

    def _take(self) -> None:
        while True:
            with contextlib.suppress(FileExistsError):
                return store.write(self._address, self._text(), new=True)
            found = now = self._read()
            if found and not _is_dead(found):
                log.warning("%s is held by %s; looking whether that lives (%.0f s).", self._place, _who(found), STALE)
                end = time.monotonic() + STALE
                while now == found and time.monotonic() < end:
                    time.sleep(STALE / 14)
                    now = self._read()
                if now and now != found:
                    raise UserError(
                        f"workdir {self._place!r} is in use by {_who(now)}; wait until it ends, or name another."
                    )
            if found and now == found:
                log.warning("%s was held by %s, which ended unheard; going on.", self._place, _who(found))
                store.remove([self._address])

    def _renew(self) -> None:
        called = time.monotonic()
        while not self._over.wait(BEAT):
            try:
                self.check()
                self._beats += 1
                store.write(self._address, self._text())
                if time.monotonic() - called >= self._every:
                    called = time.monotonic()
                    self._also()
            except UserError as e:  # what is written next finds the same, and ends the run
                log.warning("%s", e)
            except OSError as e:
                log.warning("%s cannot be written (%s); trying again later.", self._place, e.strerror)

    def _text(self) -> bytes:
        about = {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
        return jsonfile.dumps({**about, "beats": self._beats, "token": self._token}).encode()

    def _read(self) -> dict[str, Any]:
        return _said(self._address)


def owner(address: str) -> str:
    """Who has a place, by the address of its file: another text for another; "" for nobody."""
    return str(_said(address).get("token", ""))


def _said(address: str) -> dict[str, Any]:
    """What the file says; nothing where there is none, something where it is another's."""
    try:
        return jsonfile.parse(store.read(address), dict, address)
    except FileNotFoundError:
        return {}
    except UserError:
        return {"host": "a machine that does not say"}


def _is_dead(found: dict[str, Any]) -> bool:
    """Whether an owner needs no looking after: it was a process of this machine and is gone, or it is very old."""
    if found.get("host") == socket.gethostname() and isinstance(pid := found.get("process"), int):
        if pid == os.getpid():
            return True  # started anew in a container, where numbers are the same
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
    seen = found.get("time")
    return not isinstance(seen, int | float) or time.time() - seen > OLD


def _who(owner: dict[str, Any]) -> str:
    return f"process {owner.get('process')} on {owner.get('host')}"
