"""Where the cache lies."""

import os

import pytest

from vit_jax.io import cache
from vit_jax.types import UserError


def test_as_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, root in {"/x/y": "/x/y", "~/mine": f"{tmp_path}/mine", "": f"{tmp_path}/.cache"}.items():
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert str(cache.folder()) == f"{root}/vit_jax"
        assert str(cache.folder("a", "b")) == f"{root}/vit_jax/a/b"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder("a") == tmp_path / ".cache" / "vit_jax" / "a" and not list(tmp_path.iterdir())


def test_what_was_used_longest_ago_makes_room(tmp_path):
    for i, name in enumerate(("a.npz", "b.npz", "c.npz", "other")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (i, i))
    cache.trim(tmp_path, "*.npz", 300)
    assert len(list(tmp_path.iterdir())) == 4
    cache.used(tmp_path / "a.npz")
    cache.trim(tmp_path, "*.npz", 250)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "c.npz", "other"]
    cache.trim(tmp_path, "*.npz", 0)
    cache.trim(tmp_path / "nowhere", "*", 0)
    cache.used(tmp_path / "gone")
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_sizes_and_names(monkeypatch):
    monkeypatch.delenv("VIT_JAX_MAX_DOWNLOAD", raising=False)
    cache.check_size("a", 2**36)
    large = 2**36 + 1
    for value, size, words in (
        ("", large, "more than 68,719,476,736 bytes"),
        ("9", 10, "'a' has more than 9"),
        ("-1", 0, "'-1'"),
    ):
        monkeypatch.setenv("VIT_JAX_MAX_DOWNLOAD", value)
        with pytest.raises(UserError, match=words):
            cache.check_size("a", size)
    assert cache.length("aé\ud800\udcff") == 9


def test_the_code_has_a_checksum():
    assert len(cache.code()) == 64 and cache.code() == cache.code()
