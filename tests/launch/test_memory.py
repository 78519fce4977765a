"""The restart that makes a process keep its memory: once, with the same arguments, and what it is good for."""

import os
import platform
import subprocess
import sys

import pytest

from vit_jax.launch import memory


@pytest.fixture
def started(monkeypatch):
    """What would be started."""
    calls = []
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(os, "execve", lambda *args: calls.append(args))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "-m", "vit_jax", "train"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return calls


def test_the_same_command_once_more(started, monkeypatch):
    monkeypatch.setenv("KEPT", "1")
    memory.restart()
    ((program, arguments, environment),) = started
    assert program == sys.executable and arguments == [sys.executable, "-X", "dev", "-m", "vit_jax", "train"]
    assert environment["GLIBC_TUNABLES"] == memory.VALUE and environment["KEPT"] == "1"
    monkeypatch.setenv("GLIBC_TUNABLES", environment["GLIBC_TUNABLES"])
    memory.restart()
    assert len(started) == 1


@pytest.mark.parametrize("library", ["", "musl"])
def test_other_libraries_are_left_alone(started, monkeypatch, library):
    monkeypatch.setattr(platform, "libc_ver", lambda: (library, ""))
    memory.restart()
    assert started == []


FAULTS = """
import resource, numpy as np
for _ in range(3):
    np.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_buffers_are_not_fetched_again():
    def faults(**environment):
        rest = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
        done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, env=rest | environment, check=True)
        return int(done.stdout)

    assert faults(GLIBC_TUNABLES=memory.VALUE) < 100 < faults()


@pytest.mark.thorough
def test_a_real_command_survives_it():
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    command = [
        sys.executable,
        "-m",
        "vit_jax",
        "bench",
        "input",
        "--data",
        "fake:8x8x2",
        "--batch",
        "4",
        "--canvas",
        "8",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and "images/s" in done.stdout, done.stderr
