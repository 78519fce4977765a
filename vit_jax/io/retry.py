"""Trying again what a store or a disk refuses for a while: bounded, counted, and said."""

from __future__ import annotations

import collections
import errno
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

WAITS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""Seconds before each further try, of which each caller takes between a half and one and a half: the hosts of a run,
which fail together, are not to come back together. Some 13 seconds in all.
"""
LIMIT = 60.0
"""Seconds after which there is no further try, however long each takes: some clients wait by themselves."""
PASSING = frozenset(
    getattr(errno, name)
    for name in (
        "EIO", "EAGAIN", "EBUSY", "EINTR", "ESTALE", "ETIMEDOUT", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "EPIPE",
        "ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO", "ENOLINK", "ECOMM",
    )
    if hasattr(errno, name)
)  # fmt: skip
"""Numbers of the system's errors that may be over at the next try: of a network, a file server or a disk."""
STATUSES = frozenset((408, 429, 500, 502, 503, 504))
"""HTTP's statuses that may be."""
_CLIENTS = ("aiohttp", "botocore", "gcsfs", "google", "urllib3", "requests", "http", "asyncio")
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)

log = logging.getLogger(__name__)
_lock = threading.Lock()
_counts: collections.Counter[str] = collections.Counter()
_random = random.Random()  # not the one that a program may have seeded


def retried(call: Callable[[], T], what: str) -> T:
    """What ``call`` returns, at the first try at which it raises nothing that may be over at the next.

    Args:
      call: it may be made several times; what it did in part it does anew.
      what: the path or the address that it is about, for :func:`counts` and for the log.

    Raises:
      Exception: what ``call`` raises; of errors that may pass the last one, once :data:`WAITS` or
        :data:`LIMIT` are over.
    """
    begun = time.monotonic()
    for wait in WAITS:
        try:
            return call()
        except Exception as e:
            if not passing(e) or time.monotonic() - begun + wait > LIMIT:
                raise
            _count(root(what), e)
        time.sleep(wait * _random.uniform(0.5, 1.5))
    return call()


def passing(error: BaseException) -> bool:
    """Whether another try may succeed: told by HTTP's status where a client gives one, else by the system's number."""
    chain = list(_chain(error))
    for e in chain:
        if (status := _status(e)) is not None:
            return status in STATUSES
    if isinstance(error, _LASTING):
        return False
    if any(isinstance(e, ConnectionError | TimeoutError) or number(e) in PASSING for e in chain):
        return True
    # clients of the web have kinds of their own for a connection that breaks off
    of_client = type(error).__module__.partition(".")[0] in _CLIENTS
    return of_client and bool(re.search("Connect|Disconnect|Timeout|Payload|IncompleteRead", type(error).__name__))


def counts() -> Mapping[str, int]:
    """Bucket or mount point -> how often something there was tried again since this process began."""
    with _lock:
        return dict(_counts)


def summary(before: Mapping[str, int] | None = None) -> str:
    """A sentence on :func:`counts` since they were ``before``; "" where everything succeeded at once."""
    since = collections.Counter(counts()) - collections.Counter(before or {})
    parts = [f"{times:,} {'time' if times == 1 else 'times'} for {where}" for where, times in since.items()]
    return f"tried again after errors that passed: {', '.join(parts)}" if parts else ""


def root(what: str) -> str:
    """``scheme://bucket`` of an address, the mount point of a path."""
    if address := re.match(r"[A-Za-z][\w+.-]*://(?:[^/@]*@)?([^/?#]*)", what):
        return f"{what.partition('://')[0]}://{address[1]}"
    path = os.path.abspath(what)
    while not os.path.ismount(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


def _count(where: str, error: Exception) -> None:
    with _lock:
        _counts[where] += 1
        first = _counts[where] == 1
    if first:  # one that comes again and again would drown what else is said
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        log.warning("%s answers with an error (%s); trying again.", where, reason.splitlines()[0].strip(", ")[:160])


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def number(error: BaseException) -> int | None:
    """The system's number of an error, which the storage of arrays (tensorstore) has in its text."""
    named = re.search(r"os_error_code='(\d+)'", str(error))
    return int(named[1]) if named else getattr(error, "errno", None)


def _status(error: BaseException) -> int | None:
    """HTTP's status, which each client keeps in a place of its own."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, Mapping):
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for value in (
        response,
        getattr(response, "status_code", None),
        *(getattr(error, n, None) for n in ("status", "code")),
    ):
        text = str(value) if isinstance(value, int | str) else ""
        if re.fullmatch("[1-5][0-9][0-9]", text):
            return int(text)
    return None
