"""All of it or nothing: what is left after a block that ends, fails, or meets another one."""

import errno
import os
import pathlib
import stat
import threading

import pytest

from vit_jax.io import atomic
from vit_jax.types import UserError


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")
    with atomic.new_file(path) as new:
        assert new.parent == tmp_path and new.suffix == ".npz" and new.read_bytes() == b""
        new.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(error), atomic.new_file(path) as new:
        new.write_text("half")
        raise error
    with pytest.raises(error), atomic.new_folder(tmp_path / "below" / "folder") as folder:
        (folder / "x").write_text("half")
        raise error
    assert path.read_text() == "old" and sorted(os.listdir(tmp_path)) == ["a", "below"]
    assert os.listdir(tmp_path / "below") == []


def test_what_others_may_do_with_it(tmp_path):
    (tmp_path / "plain").touch()
    atomic.write_text(tmp_path / "a.json", "é")
    with atomic.new_folder(tmp_path / "folder") as folder:
        (folder / "x").touch()
    assert (tmp_path / "a.json").read_bytes() == "é".encode()
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755 and os.listdir(tmp_path / "folder") == ["x"]
    atomic.write_text(tmp_path / "b", "\udc80")
    assert (tmp_path / "b").read_text() == "\\udc80"


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002, 0o027])
def test_links_and_the_umask(tmp_path, umask):
    """A link at the target is replaced; nothing that has a guessable name is opened; others get what the umask says."""
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "a.json").symlink_to(tmp_path / "victim")
    for guess in ("a.json.new", "a.json.tmp", "a.new"):
        (tmp_path / guess).symlink_to(tmp_path / "victim")
    old = os.umask(umask)
    try:
        atomic.write_text(tmp_path / "a.json", "theirs")
        with atomic.new_folder(tmp_path / "below" / "folder"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "victim").read_text() == "mine" and not (tmp_path / "a.json").is_symlink()
    assert (tmp_path / "a.json").read_text() == "theirs"
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.json", "below/folder")]
    assert modes == [0o666 & ~umask, 0o777 & ~umask]


@pytest.mark.parametrize("name", ["", ".", "x\0y", "y" * 300, "z." + "e" * 300])
def test_names_that_are_none(tmp_path, name):
    path = type(tmp_path)(name) if name in ("", ".") else tmp_path / name
    with pytest.raises(OSError):
        atomic.write_text(path, "x")
    with pytest.raises(OSError), atomic.new_folder(path):
        pass
    assert os.listdir(tmp_path) == []


def test_several_at_once_never_mix(tmp_path):
    path, texts = tmp_path / "a", [f"{i}" * 10_000 for i in range(8)]
    threads = [threading.Thread(target=atomic.write_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts and os.listdir(tmp_path) == ["a"]


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic.write_text(tmp_path / "no" / "a", "x")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError), atomic.new_folder(tmp_path / "file" / "folder"):
        raise AssertionError
    (tmp_path / "there" / "x").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"), atomic.new_folder(tmp_path / "there"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["file", "there"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some space and run"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full; free some space and run"),
        (OSError(errno.EFBIG, "File too large"), "the disk is full; free some space and run"),
        (ValueError("RESOURCE_EXHAUSTED: Error writing 'a'"), "the disk is full; free some space and run"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "Permission denied"),
        (ValueError("ABORTED: Error reading a [os_error_code='116'] [spec={}]"), "Stale file handle"),
        (RuntimeError("first\nsecond"), "first"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_reasons(error, sentence):
    assert atomic.reason(error).startswith(sentence) and "\n" not in atomic.reason(error)


def test_what_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "a").mkdir()
    sentence = r"^the log cannot be written: Is a directory, alas\.$"
    with pytest.raises(UserError, match=sentence), atomic.writing("the log", ", alas"):
        atomic.write_text(tmp_path / "a", "x")
    assert os.listdir(tmp_path) == ["a"]


def test_an_error_under_way_is_the_one_that_is_said():
    with atomic.unsaid_under(KeyError()):
        raise UserError("closing failed too")
    with pytest.raises(UserError), atomic.unsaid_under(None):
        raise UserError("closing failed")
    with pytest.raises(ZeroDivisionError), atomic.unsaid_under(KeyError()):
        raise ZeroDivisionError  # no mistake of the user's


def test_devices_and_pipes_stay(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    for name, reason in (("pipe", "no regular file"), ("null", "no regular file"), ("folder", "Is a directory")):
        with pytest.raises(OSError, match=reason):
            atomic.write_text(tmp_path / name, "x")
    assert (tmp_path / "pipe").is_fifo() and os.listdir(tmp_path / "folder") == []


def test_a_text_is_written_anew_where_the_disk_fails_for_a_while(tmp_path, fails):
    fails(os, "fsync", 2)
    atomic.write_text(tmp_path / "a", "whole")
    assert (tmp_path / "a").read_text() == "whole" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_address_is_no_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (lambda path: atomic.write_text(path, "x"), lambda path: atomic.new_folder(path).__enter__()):
        with pytest.raises(OSError, match="an address, and only runs are written to one"):
            write(pathlib.Path("gs://bucket/x"))
    assert list(tmp_path.iterdir()) == []
