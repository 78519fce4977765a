"""One rule for which files of a folder are images, and what is said of the others."""

import os

import pytest

from vit_jax.io import images
from vit_jax.types import UserError


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_images_and_the_rest(tmp_path):
    make(tmp_path, "a.jpg", "b/c.PNG", "b/d/e.Gif", "b/notes.txt", "._a.jpg", "b/.cache/f.jpg", "noend", "g.heic")
    (tmp_path / "album.jpg").mkdir()
    make(tmp_path, "album.jpg/1.tiff")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    found = images.walk(tmp_path)
    assert sorted(found.images) == ["a.jpg", "album.jpg/1.tiff", "b/c.PNG", "b/d/e.Gif", "g.heic"]
    assert sorted(found.others) == ["b/notes.txt", "gone.jpg", "noend", "pipe.jpg", "zero.jpg"]
    assert sorted(found.hidden) == ["._a.jpg", "b/.cache"] and found.again == []
    assert found.left_out("X") == (
        "5 files in X are no images and were left out (first: b/notes.txt).",
        "2 hidden files or folders in X were left out (first: ._a.jpg).",
    )
    flat = images.walk(tmp_path, deep=False)
    assert sorted(flat.images) == ["a.jpg", "g.heic"] and images.folders(tmp_path) == ["album.jpg", "b"]
    assert images.holds_images(tmp_path)
    (tmp_path / "b/d/e.Gif").unlink()
    assert not images.holds_images(tmp_path / "b/d")
    assert (found + flat).below("y").images[0].startswith("y/")


def test_links_are_followed_each_folder_once(tmp_path):
    make(tmp_path, "data/cat/1.jpg", "data/cat/deep/2.jpg", "disk/3.jpg", "disk/more/4.jpg")
    cat = tmp_path / "data/cat"
    (cat / "a").symlink_to(tmp_path / "disk")
    (cat / "b").symlink_to(tmp_path / "disk")  # a second time
    (cat / "c").symlink_to("deep")  # is there already, under its own name
    (cat / "deep/up").symlink_to("..")  # a circle
    (cat / "deep/top").symlink_to(tmp_path)  # a circle, and everything else
    (cat / "5.jpg").symlink_to("1.jpg")
    found = images.walk(cat)
    assert sorted(found.images) == ["1.jpg", "5.jpg", "a/3.jpg", "a/more/4.jpg", "deep/2.jpg"]
    assert sorted(found.again) == ["b", "c", "deep/top", "deep/up"]
    assert found.left_out("X")[-1].startswith("4 links in X lead to folders that were listed already")


def test_a_maze_of_links_ends(tmp_path):
    """Two links in each of 40 folders would be a million million paths."""
    for i in range(40):
        (tmp_path / f"{i:02d}").mkdir()
        for name in "xy":
            (tmp_path / f"{i:02d}" / name).symlink_to(tmp_path / f"{(i + 1) % 40:02d}")
    make(tmp_path, "39/1.jpg")
    assert [path.count("/") for path in images.walk(tmp_path / "00").images] == [39]


def test_deep_folders(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(300):
            os.mkdir("d", dir_fd=here)
            here, old = os.open("d", os.O_RDONLY, dir_fd=here), here
            os.close(old)
    finally:
        os.close(here)
    make(tmp_path, "a.jpg")
    assert images.walk(tmp_path).images == ["a.jpg"]


def test_what_cannot_be_listed(tmp_path):
    with pytest.raises(UserError, match=r"the folder '.*gone' cannot be read \(No such file or directory\)\.$"):
        images.walk(tmp_path / "gone")
    make(tmp_path, "file")
    with pytest.raises(UserError, match=r"the folder '.*file' cannot be read \(Not a directory\)\.$"):
        images.folders(tmp_path / "file")


def test_a_folder_is_listed_again_where_the_disk_fails_for_a_while(tmp_path, fails):
    (tmp_path / "a").mkdir()
    fails(os, "scandir", 2)
    assert images.folders(tmp_path) == ["a"]
    fails(os, "scandir", 4)
    with pytest.raises(UserError, match=r"cannot be read \(Stale file handle\)"):
        images.folders(tmp_path)
