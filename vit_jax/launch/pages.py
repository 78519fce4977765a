"""Memory in pages of 2 MB instead of 4 KB, where Linux gives them on request.

On a CPU every step takes its buffers from ``malloc``, and the kernel fills them page by page: a large part of a small
product's time. The C library asks for huge pages if its environment says so when a process starts, hence the restart.
"""

from __future__ import annotations

import os
import pathlib
import platform
import sys

NAME, VALUE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
SWITCH = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart() -> None:
    """Starts this process anew, same number and same arguments, with huge pages; returns where that gains nothing.

    That is: on another system or C library, where the kernel gives such pages always or never, or where the user has
    settings of the C library, which stay.
    """
    if NAME in os.environ or not _on_request() or not sys.executable:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, NAME: VALUE})


def _on_request() -> bool:
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
        return False
    try:
        return "[madvise]" in SWITCH.read_text()
    except OSError:
        return False
