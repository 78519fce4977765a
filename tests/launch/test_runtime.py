"""Process-wide settings: made by commands, steered by the environment."""

import jax
import pytest

from vit_jax.launch import runtime


@pytest.fixture
def calls(monkeypatch):
    found = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: found.setdefault("joined", True))
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    names = ("JAX_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES", "XDG_CACHE_HOME")
    for name in (*names, "JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return found


def test_one_process_joins_nobody(calls):
    assert runtime.join() is None and calls == {}


def test_the_cache_of_programs(calls, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    runtime.setup()
    limit = {"jax_compilation_cache_max_size": 5 * 10**9}
    assert calls == {"jax_compilation_cache_dir": "/home/me/.cache/vit_jax/programs", **limit}
    monkeypatch.setenv("XDG_CACHE_HOME", "/tmp/cache")
    runtime.setup()
    assert calls == {"jax_compilation_cache_dir": "/tmp/cache/vit_jax/programs", **limit}
    calls.clear()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")  # and that
    runtime.setup()
    assert calls == {"jax_compilation_cache_dir": "/tmp/cache/vit_jax/programs"}
    calls.clear()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")  # jax reads that itself
    runtime.setup()
    assert calls == {}


def test_programs_without_their_time_of_use_go(calls, monkeypatch, tmp_path):
    """As those of versions without a limit: JAX reads the times of all, and would give up each time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "vit_jax" / "programs"
    folder.mkdir(parents=True)
    for name in ("jit_a-cache", "jit_b-cache", "jit_b-atime", "other"):
        (folder / name).write_bytes(b"")
    runtime.setup()
    assert sorted(path.name for path in folder.iterdir()) == ["jit_b-atime", "jit_b-cache", "other"]
