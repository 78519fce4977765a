"""Bytes of regular files; everything else is refused before it can hang or fill the memory."""

import os
import threading

import pytest

from vit_jax.io import files, reads


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


@pytest.mark.parametrize("read", [lambda path: files.read(path, 9), lambda path: files.ranges(path, [(0, 3)])[0]])
def test_a_disk_that_fails_for_a_while(tmp_path, fails, read):
    path = str(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"abc")
    left = fails(os, "open", 3)
    assert read(path) == b"abc" and not left
    fails(os, "open", 4)
    with pytest.raises(OSError, match=f"Stale file handle: '{path}'"):
        read(path)


def test_what_is_read_is_known_meanwhile(tmp_path):
    assert files.tried(tmp_path, lambda: reads.by(threading.get_ident())) == str(tmp_path)
