"""``vit_jax launch local``: the hosts of a run as processes of this machine, joined over loopback."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from vit_jax.cli import options

HELP = "processes of this machine that are one run, as the hosts of a pod are"
GRACE = 15.0
"""Seconds that the others have to end by themselves once one has ended: they notice it, and say what they know."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this kind."""
    options.value(parser, "processes", 2, "hosts of the run", 1024, metavar="N")
    options.value(parser, "devices_per_process", 1, "CPU devices of each", 1024, metavar="N")
    options.value(parser, "port", 0, "where they meet, 0 for one that is free", 2**16 - 1, least=0, metavar="N")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and stop")


def run(args: argparse.Namespace) -> int:
    """Runs ``args.words``, a command of vit_jax, on all hosts; returns the exit status of the whole."""
    port = args.port or _free_port()
    environments = [
        environment(host, args.processes, args.devices_per_process, port, os.environ) for host in range(args.processes)
    ]
    if args.dry_run:
        for added in environments:
            print(shlex.join(["env", *(f"{k}={v}" for k, v in added.items()), "vit_jax", *args.words]))
        return 0
    return watch([sys.executable, "-m", "vit_jax", *args.words], environments)


def environment(host: int, count: int, devices: int, port: int, user: Mapping[str, str]) -> dict[str, str]:
    """What the environment of a host has beside the user's: the platform is a CPU's unless the user chose another."""
    added = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",  # nobody else is to come in
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(host),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": user.get("JAX_PLATFORMS") or "cpu",
    }
    if flags := user.get("XLA_FLAGS"):  # one way of counting devices is enough
        added["XLA_FLAGS"] = re.sub(r"--xla_force_host_platform_device_count=\d+ ?", "", flags)
    return added


def watch(command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> int:
    """Runs ``command`` once for each environment until the last has ended, and says who ended the run.

    What the first host prints goes where the launcher's own output goes; lines of the others to the error stream, with
    their number. SIGINT and SIGTERM go to all.

    Returns:
      The exit status, see :func:`status`.
    """
    hosts: list[subprocess.Popen[bytes]] = []
    printers = []
    with _forwarded(hosts):
        try:
            for host, added in enumerate(environments):
                hosts.append(_started(command, added, host, _cores(host, len(environments))))
                if lines := hosts[-1].stdout:
                    printers.append(threading.Thread(target=_print, args=(host, lines), daemon=True))
                    printers[-1].start()
            killed = _wait(hosts)
        finally:
            for process in hosts:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # whatever it started, too
                process.wait()
    for printer in printers:
        printer.join(timeout=2)
    return status([process.returncode for host, process in enumerate(hosts) if host not in killed])


def status(codes: Sequence[int]) -> int:
    """The exit status of a run whose hosts ended with ``codes``, those below zero being signals.

    It is theirs where they agree, :data:`vit_jax.hosts.RESUME` where all that no signal ended say so, and else 1.
    """
    from vit_jax.hosts import RESUME

    ended = {code for code in codes if code >= 0}
    return ended.pop() if len(ended) == 1 and (ended == {RESUME} or min(codes) >= 0) else 1


def _wait(hosts: Sequence[subprocess.Popen[bytes]]) -> set[int]:
    """Returns once every host has ended, or :data:`GRACE` after the first; the numbers of those that had not."""
    end, seen = float("inf"), set[int]()
    while len(seen) < len(hosts) and time.monotonic() < end:
        for host, process in enumerate(hosts):
            if host not in seen and (code := process.poll()) is not None:
                seen.add(host)
                end = min(end, time.monotonic() + GRACE)
                if code < 0:
                    _say(f"host {host + 1} of {len(hosts)} was ended by {signal.Signals(-code).name}")
        time.sleep(0.05)
    left = set(range(len(hosts))) - seen
    for host in sorted(left):
        _say(f"host {host + 1} of {len(hosts)} was still there {GRACE:.0f} s after the first had ended, and was killed")
    return left


HOST = """
import ctypes, os, sys
launcher, cores, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    os.sched_setaffinity(0, map(int, cores.split(",")))
if os.getppid() != int(launcher):  # it ended before that could be said
    os._exit(1)
os.execv(command[0], command)
"""
"""What a process does before it becomes a host: it is not to outlive the launcher, and keeps to its cores."""


def _started(command: Sequence[str], added: Mapping[str, str], host: int, cores: set[int]) -> subprocess.Popen[bytes]:
    first = [sys.executable, "-ISc", HOST, str(os.getpid()), ",".join(map(str, sorted(cores)))]
    return subprocess.Popen(
        [*first, *command],
        env={**os.environ, **added},
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C comes once, from here, and not from the terminal too
        stdout=subprocess.PIPE if host else None,
        stderr=subprocess.STDOUT if host else None,
    )


def _cores(host: int, count: int) -> set[int]:
    """Cores of a host, about as many as of any other: XLA takes a thread for each that it sees.

    Nothing where the system does not tell.
    """
    if sys.platform != "linux":
        return set()
    cores = sorted(os.sched_getaffinity(0))
    if count >= len(cores):
        return {cores[host % len(cores)]}
    return {core for i, core in enumerate(cores) if i * count // len(cores) == host}


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _print(host: int, lines: IO[bytes]) -> None:
    with lines:
        for line in lines:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"host {host + 1}: {line.decode('utf-8', 'backslashreplace')}")
                sys.stderr.flush()


def _say(text: str) -> None:
    print(f"vit_jax launch: {text}.", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _forwarded(hosts: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Inside, what would interrupt or end this process is sent to all ``hosts`` instead."""

    def send(number: int, _: Any) -> None:
        for process in hosts:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    old = {number: signal.signal(number, send) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
