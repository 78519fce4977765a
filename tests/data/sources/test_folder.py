import os
import pickle
import shutil

import numpy as np
import pytest

from tests.data.helpers import encode, random_image
from vit_jax.data.sources import open_source
from vit_jax.data.sources.base import Unreadable
from vit_jax.data.sources.folder import canonical_key
from vit_jax.types import UserError


def everything(source):
    return [source[i] for i in range(len(source))]


def test_classes_order_and_bytes(folder):
    source = open_source(f"folder:{folder}", holdout=0)
    assert source.info.class_names == ("ant", "cat", "dog")
    records = everything(source)
    assert np.bincount([r["label"] for r in records]).tolist() == [12, 17, 9]
    keys = [(r["label"], canonical_key(r["name"])) for r in records]
    assert keys == sorted(keys)
    first = records[0]
    assert first["name"] == f"{folder}/ant/ant.0.jpg" and first["image"] == (folder / "ant/ant.0.jpg").read_bytes()
    assert any("deeper" in r["name"] for r in records)
    assert everything(pickle.loads(pickle.dumps(source))) == records


def test_canonical_order_is_by_bytes_without_the_suffix():
    """Fixed for good: the order of files is part of what a run can be resumed with."""
    names = ["b/a.jpg", "a.b.jpg", "a.png", "ä.jpg", "a-1.jpg", "a.jpg", "B.jpg", "nosuffix"]
    ordered = ["B.jpg", "a.jpg", "a.png", "a-1.jpg", "a.b.jpg", "b/a.jpg", "nosuffix", "ä.jpg"]
    assert sorted(names, key=canonical_key) == ordered


def test_seeded_split(folder):
    train = open_source(f"folder:{folder}", holdout=0.25, seed=1)
    val = open_source(f"folder:{folder}", "val", holdout=0.25, seed=1)
    names = [r["name"] for r in everything(train) + everything(val)]
    assert len(val) == round(0.25 * 38) and len(set(names)) == 38
    other = everything(open_source(f"folder:{folder}", "val", holdout=0.25, seed=2))
    assert {r["name"] for r in other} - {r["name"] for r in everything(val)}


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_train_and_val_folders(folder, tmp_path, name):
    root = tmp_path / "split"
    shutil.copytree(folder, root / "train")
    shutil.copytree(folder, root / name)
    shutil.rmtree(root / name / "ant")  # validation may lack a class; labels still count in training's
    train, val = open_source(f"folder:{root}"), open_source(f"folder:{root}", "val")
    assert len(train) == 38 and len(val) == 26
    assert val.info.class_names == ("ant", "cat", "dog") and {r["label"] for r in everything(val)} == {1, 2}
    (root / name / "bee").mkdir()
    (root / name / "bee/a.png").write_bytes(encode(np.zeros((2, 2, 3), np.uint8), "PNG"))
    with pytest.raises(UserError, match="holds class 'bee', unknown in training"):
        open_source(f"folder:{root}", "val")


def test_train_folder_alone_is_split_by_seed(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "split/train")
    assert len(open_source(f"folder:{tmp_path}/split", "val", holdout=5)) == 5


def test_train_may_be_a_class(folder):
    (folder / "ant").rename(folder / "train")
    assert open_source(f"folder:{folder}").info.class_names == ("cat", "dog", "train")


def test_what_is_left_out_is_reported(folder):
    (folder / "cat/.hidden.jpg").write_bytes(b"")
    (folder / ".cache").mkdir()
    (folder / "cat/notes.txt").write_text("x")
    (folder / "dog/b.svg").write_text("x")
    (folder / "emu").mkdir()
    (folder / "loose.jpg").write_bytes(b"x")
    (folder / "data.yaml").write_text("x")
    info = open_source(f"folder:{folder}", holdout=0).info
    assert info.num_examples == 38 and info.num_classes == 3
    assert info.notes == (
        f"3 files in {folder} are no images and were left out (first: cat/notes.txt).",
        f"2 hidden files or folders in {folder} were left out (first: .cache).",
        f"1 images in {folder} are in no class and were left out (first: loose.jpg).",
        f"1 folders in {folder} hold no images and are no classes (first: emu).",
    )


def test_a_file_that_disappears_is_named(folder):
    source = open_source(f"folder:{folder}", holdout=0)
    (folder / "ant/ant.0.jpg").unlink()
    with pytest.raises(Unreadable, match=r"ant\.0\.jpg cannot be read \(No such file or directory\)"):
        source[0]


def test_same_name_different_suffix(tmp_path, rng):
    for name in ("a/1.jpg", "a/1.png", "b/1.jpg"):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_bytes(encode(random_image(rng, 4, 4)))
    source = open_source(f"folder:{tmp_path}/x", holdout=0)
    assert [r["name"][-7:] for r in everything(source)] == ["a/1.jpg", "a/1.png", "b/1.jpg"]


def test_mistakes(tmp_path, folder):
    def opening(path):
        return pytest.raises(UserError, match=path)

    with opening("does not exist; did you mean '.*images'"):
        open_source(f"folder:{tmp_path}/imagse")
    with opening("is not a folder"):
        open_source(f"folder:{folder}/ant/ant.0.jpg")
    with opening("lacks its path; write 'folder:PATH'"):
        open_source("folder:")
    with opening("the images in .* have no class"):
        open_source(f"folder:{folder}/ant/deeper")
    (tmp_path / "empty").mkdir()
    with opening("no images in .*: put images .* in one sub-folder per class"):
        open_source(f"folder:{tmp_path}/empty")


def parts(root, names, classes=("cat", "dog"), n=2):
    for name in names:
        for value, label in enumerate(classes):
            (root / name / label).mkdir(parents=True)
            for i in range(n):
                image = encode(np.full((2, 3, 3), 9 * value + i, np.uint8), "PNG")
                (root / name / label / f"{i}.png").write_bytes(image)
    return root


@pytest.mark.parametrize(
    ("names", "val"),
    [
        ("Training Testing", None),
        ("Train Val", "Val"),
        ("train dev", "dev"),
        ("train eval", None),
        ("TRAIN Validation test", "Validation"),
        ("training valid evaluation", "valid"),
        ("train val validation", "val"),
    ],
)
def test_parts_in_other_spellings(tmp_path, names, val):
    root = parts(tmp_path / "x", names.split())
    (root / "__MACOSX/train/cat").mkdir(parents=True)  # of archives made on a Mac
    (root / "__MACOSX/train/cat/._0.png").write_bytes(b"x")
    (root / "annotations").mkdir()
    (root / "annotations/a.json").write_text("{}")
    train = open_source(f"folder:{root}", holdout=1)
    held = open_source(f"folder:{root}", "val", holdout=1)
    assert train.info.notes[-1] == f"2 folders in {root} hold no images and are no classes (first: __MACOSX)."
    assert (
        train.info.class_names == ("cat", "dog") and len(train) == (4 if val else 3) and len(held) == (4 if val else 1)
    )
    assert val is None or held[0]["name"].startswith(f"{root}/{val}/")
    unused = len(names.split()) - (2 if val else 1)
    assert sum("was left out; name it as data.val" in note for note in train.info.notes) == unused


def test_two_readings_of_a_folder(tmp_path):
    root = parts(tmp_path / "x", ("train", "val", "unlabeled"))
    sentence = r"two ways: as parts .*\(train, val, .*unlabeled beside them, or as classes \(train, unlabeled, val\)"
    with pytest.raises(UserError, match=sentence):
        open_source(f"folder:{root}")
    assert open_source(f"folder:{root}/train", holdout=0).info.class_names == ("cat", "dog")
    root = parts(tmp_path / "y", ("val", "Test"))
    with pytest.raises(UserError, match=r"parts of a data set \(Test, val\) and none to train on; .* folder:.*/Test\."):
        open_source(f"folder:{root}")


def test_names_of_parts_that_are_classes(tmp_path):
    """Folders with other folders in them, or with none."""
    root = tmp_path / "x"
    for name in ("train/freight", "car/red", "test"):
        (root / name).mkdir(parents=True)
        (root / name / "1.png").write_bytes(b"x")
    assert open_source(f"folder:{root}", holdout=0).info.class_names == ("car", "test", "train")
    shutil.rmtree(root / "car")
    shutil.rmtree(root / "train/freight")
    (root / "train/1.png").write_bytes(b"x")
    assert open_source(f"folder:{root}", holdout=0).info.class_names == ("test", "train")


def test_linked_folders_count(tmp_path, folder):
    (tmp_path / "disk/more").mkdir(parents=True)
    for name in ("1.jpg", "more/2.jpg"):
        shutil.copy(folder / "ant/ant.0.jpg", tmp_path / "disk" / name)
    (folder / "cat/web").symlink_to(tmp_path / "disk")
    (folder / "dog/web").symlink_to(tmp_path / "disk")  # in another class it counts again
    (folder / "cat/circle").symlink_to("..")
    (folder / "emu").symlink_to(tmp_path / "disk")
    info = open_source(f"folder:{folder}", holdout=0).info
    assert info.class_names == ("ant", "cat", "dog", "emu") and info.num_examples == 38 + 6
    assert info.notes == (
        f"1 links in {folder} lead to folders that were listed already and were left out (first: cat/circle).",
    )


def test_pipes_and_devices_are_no_images(tmp_path, folder):
    os.mkfifo(folder / "cat/pipe.jpg")
    (folder / "cat/zero.png").symlink_to("/dev/zero")
    (folder / "cat/gone.png").symlink_to("nowhere")
    with open(folder / "dog/sparse.png", "wb") as f:
        f.truncate(2**33)
    source = open_source(f"folder:{folder}", holdout=0)
    assert source.info.notes == (f"3 files in {folder} are no images and were left out (first: cat/gone.png).",)
    assert len(source) == 39
    with pytest.raises(Unreadable, match=r"sparse\.png cannot be read \(more than 536,870,912 bytes\)"):
        source[38]


def test_what_was_left_out_is_said_with_an_error_too(tmp_path):
    (tmp_path / "x/cat").mkdir(parents=True)
    (tmp_path / "x/cat/._1.jpg").write_bytes(b"x")
    (tmp_path / "x/cat/a.svg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no images in .*; 1 files in .* \(first: cat/a.svg\).; 1 hidden files"):
        open_source(f"folder:{tmp_path}/x")


def test_classes_of_validation_in_another_normal_form(tmp_path):
    root = parts(tmp_path / "x", ("train",), ("caf\u00e9", "the"))
    parts(root, ("val",), ("cafe\u0301", "the"))
    val = open_source(f"folder:{root}", "val")
    assert val.info.class_names == ("caf\u00e9", "the") and [val[i]["label"] for i in range(4)] == [0, 0, 1, 1]


def test_the_digest_is_of_names_labels_and_order_and_not_of_the_place(folder, tmp_path):
    known = open_source(f"folder:{folder}", holdout=0).info.digest
    assert open_source(f"folder:{shutil.copytree(folder, tmp_path / 'moved')}", holdout=0).info.digest == known
    name = next(path for path in (tmp_path / "moved").rglob("*") if path.suffix == ".PNG")
    name.rename(name.with_stem("zzz"))
    assert open_source(f"folder:{tmp_path}/moved", holdout=0).info.digest != known
    (shutil.copytree(folder, tmp_path / "more") / name.parent.name / "more.png").write_bytes(b"x")
    assert open_source(f"folder:{tmp_path}/more", holdout=0).info.digest != known
