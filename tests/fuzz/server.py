"""Runs command lines one after the other, each in a forked child with limits: ``python -m tests.fuzz.server``.

What takes seconds, importing the package, happens once; no child can hurt another. A line of JSON asks, a line of JSON
answers (:mod:`tests.fuzz.harness` speaks to it). Nothing here may start JAX's threads: they do not survive a fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from typing import Any

CRASHED = 70
"""Exit status of a command that ended in an exception."""


def resident(pid: int) -> int:
    """Bytes of memory of a process, 0 once it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def child(argv: list[str], folder: str, out: str, err: str) -> None:
    """Becomes the command: its output goes to files, its exit status is that of the process."""
    from vit_jax.cli import main

    os.chdir(folder)
    for path, number in ((os.devnull, 0), (out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
    code: Any = CRASHED
    try:
        code = main(argv)
    except SystemExit as e:
        code = e.code
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code if isinstance(code, int) else CRASHED)


def serve(ask: dict[str, Any]) -> dict[str, Any]:
    """Runs one command line and says how it ended: ``code`` (negative: a signal), ``seconds``, ``memory``, ``why``."""
    started, most, why = time.monotonic(), 0, ""
    pid = os.fork()
    with contextlib.suppress(PermissionError):
        os.setpgid(pid, 0)  # both do: whoever comes first, its children end with it
    if pid == 0:
        child(ask["argv"], ask["folder"], ask["out"], ask["err"])
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        most = max(most, resident(pid))
        why = "hang" if time.monotonic() - started > ask["seconds"] else "memory" if most > ask["memory"] else ""
        if why:
            os.killpg(pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    most = max(most, usage.ru_maxrss * 1024)
    if not why and most > ask["memory"]:
        why = "memory"
    return {"code": code, "seconds": time.monotonic() - started, "memory": most, "why": why}


def warm() -> None:
    """Imports what commands import."""
    import pyarrow.parquet  # noqa: F401

    import vit_jax
    import vit_jax.api
    import vit_jax.cli

    for name in vit_jax.PUBLIC:
        getattr(vit_jax, name)


def run() -> None:
    warm()
    answers = os.fdopen(os.dup(1), "w")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    run()
