"""Memory that a process keeps from step to step, in huge pages where the system has them.

On a CPU every step takes gigabytes of buffers from ``malloc``. The C library gives them back when it ends, and the next
step waits for the same pages to be filled with zeros again, a fifth of its time. What to do instead the library is told
when a process starts, hence the restart. The price: the process stays as large as it once was.
"""

from __future__ import annotations

import os
import platform
import sys

NAME = "GLIBC_TUNABLES"
VALUE = ":".join((
    "glibc.malloc.mmap_max=0",  # no buffer of its own that the system takes back
    "glibc.malloc.arena_max=1",  # threads with memory of their own would make such buffers all the same
    "glibc.malloc.trim_threshold=1099511627776",  # bytes free at the end of memory that are kept
    "glibc.malloc.hugetlb=1",  # pages of 2 MB on request
))  # fmt: skip


def restart() -> None:
    """Starts this process anew, same number and arguments, with these settings; returns where they would do nothing.

    That is with another C library than glibc, or if the user set GLIBC_TUNABLES.
    """
    if NAME in os.environ or platform.libc_ver()[0] != "glibc" or not sys.executable:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, NAME: VALUE})
