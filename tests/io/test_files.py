"""Bytes of regular files; everything else is refused before it can hang or fill the memory."""

import os

import pytest

from vit_jax.io import files


def test_a_file_and_a_link_to_it(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    assert files.read(tmp_path / "a", 3) == files.read(str(tmp_path / "b"), 10) == b"abc"
    with files.open_regular(tmp_path / "a") as file:
        assert file.read(2) == b"ab"


def test_what_is_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    with open(tmp_path / "sparse", "wb") as f:
        f.truncate(2**40)
    before = len(os.listdir("/proc/self/fd"))
    for name, reason in (
        ("pipe", "no regular file"),
        ("zero", "no regular file"),
        ("sparse", "more than 100 bytes"),
        (".", "Is a directory"),
        ("loop", "symbolic links"),
        ("gone", "No such file"),
        ("x" * 300, "name too long"),
        ("a\0b", "null byte"),
    ):
        with pytest.raises(OSError, match=reason):
            files.read(tmp_path / name, 100)
    assert len(os.listdir("/proc/self/fd")) == before
