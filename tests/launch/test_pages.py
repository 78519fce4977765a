"""The restart for huge pages: once, with the same arguments, and only where it gains something."""

import os
import platform
import subprocess
import sys

import pytest

from vit_jax.launch import pages


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What would be started, on a machine that gives huge pages on request."""
    calls = []
    switch = tmp_path / "enabled"
    switch.write_text("always [madvise] never\n")
    monkeypatch.setattr(pages, "SWITCH", switch)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(os, "execve", lambda *args: calls.append(args))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "-m", "vit_jax", "models"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return calls


def test_the_same_command_once_more(started, monkeypatch):
    monkeypatch.setenv("KEPT", "1")
    pages.restart()
    ((program, arguments, environment),) = started
    assert program == sys.executable and arguments == [sys.executable, "-X", "dev", "-m", "vit_jax", "models"]
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1" and environment["KEPT"] == "1"
    monkeypatch.setenv("GLIBC_TUNABLES", environment["GLIBC_TUNABLES"])
    pages.restart()
    assert len(started) == 1


@pytest.mark.parametrize("library", [("glibc", "2.31"), ("", ""), ("musl", "1.2")])
def test_other_libraries_are_left_alone(started, monkeypatch, library):
    monkeypatch.setattr(platform, "libc_ver", lambda: library)
    pages.restart()
    assert started == []


@pytest.mark.parametrize("text", ["[always] madvise never", "always madvise [never]", None])
def test_always_and_never_are_left_alone(started, text):
    pages.SWITCH.write_text(text) if text else pages.SWITCH.unlink()
    pages.restart()
    assert started == []


def test_a_real_command_survives_it():
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax", "models", "vit_ti16", "--json", "-"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and '"parameters": 5717416' in done.stdout, done.stderr
