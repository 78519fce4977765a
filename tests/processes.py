"""Real processes that are one run: started together, given a time, and killed whatever happens.

with processes.started(2, ["train", ...]) as hosts:
    hosts[0].until("step 10/")
    hosts[1].kill(signal.SIGKILL)
    ended = processes.ended(hosts, 60)
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from vit_jax.cli.launch import local

ROOT = pathlib.Path(__file__).parents[1]
TINY = (
    "--config=digits", "--config.plots=False", "--config.model.width=16", "--config.model.depth=1",
    "--config.model.heads=2", "--config.model.mlp_dim=32", "--config.batch_size=32", "--config.loggers=()",
)  # fmt: skip
"""A training of seconds, most of which are the start of Python."""


@dataclasses.dataclass
class Ended:
    """How a process ended: its exit status (of a signal, less than 0), all it printed, and when, by the clock."""

    status: int
    output: str
    at: float


class Host:
    """One process, whose output is read while it runs."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self.output, self.at = b"", 0.0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self.process.stdout as stream:
            while data := os.read(stream.fileno(), 2**16):
                self.output += data
        self.process.wait()
        self.at = time.monotonic()

    def until(self, text: str, seconds: float = 120) -> None:
        """Returns once ``text`` was printed."""
        end = time.monotonic() + seconds
        while text.encode() not in self.output:
            assert time.monotonic() < end and self.process.poll() is None, self.output.decode()
            time.sleep(0.05)

    def kill(self, number: int) -> float:
        """Sends a signal; returns the time."""
        self.process.send_signal(number)
        return time.monotonic()

    def ended(self, seconds: float) -> Ended:
        """How it ended, which is to be within ``seconds``."""
        self._reader.join(seconds)
        assert self.at, f"still there after {seconds:.0f} s: {self.output.decode(errors='replace')}"
        return Ended(self.process.returncode, self.output.decode(errors="replace"), self.at)


@contextlib.contextmanager
def started(
    count: int, words: Sequence[str] = (), *, code: str = "", devices: int = 1, each: Sequence[dict[str, str]] = ()
) -> Iterator[list[Host]]:
    """Hosts that run a command of vit_jax, or Python ``code``; ``each`` has variables of single ones."""
    command = [sys.executable, *(["-c", code] if code else ["-m", "vit_jax", *words])]
    port = local._free_port()
    hosts: list[Host] = []
    try:
        for i in range(count):
            own = local.environment(i, count, devices, port, {}) | (dict(each[i]) if each else {})
            hosts.append(Host(command, clean() | own))
        yield hosts
    finally:
        for host in hosts:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(host.process.pid, signal.SIGKILL)
            host._reader.join()


def ended(hosts: Sequence[Host], seconds: float) -> list[Ended]:
    """How all of them ended, within ``seconds`` together."""
    end = time.monotonic() + seconds
    return [host.ended(max(0.0, end - time.monotonic())) for host in hosts]


def clean() -> dict[str, str]:
    """The environment of a user: nothing that the tests set for themselves but for the cache and what compiles fast."""
    dropped = ("JAX_PLATFORMS", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER")
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    return kept | fast() | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def fast() -> dict[str, str]:
    """Settings of ``conftest.py`` with which tiny programs are compiled in half the time; as many devices as usual."""
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    return {"XLA_FLAGS": " ".join(flags), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
