import pickle
import shutil
import tarfile

import numpy as np
import pytest

from tests.data.helpers import encode, random_image, write_shard
from vit_jax.data.loader import train_batches
from vit_jax.data.sources import open_source, write_tar
from vit_jax.data.sources.base import Unreadable
from vit_jax.types import UserError


def contents(source):
    return [(source[i]["label"], source[i]["image"]) for i in range(len(source))]


def shards(tmp_path, labels, name="t", per_shard=3):
    """Members in an order unlike the canonical one, in several shards."""
    paths = []
    for start in range(0, len(labels), per_shard):
        files = {}
        for i in reversed(range(start, min(start + per_shard, len(labels)))):
            files[f"{i:04d}.cls"] = str(labels[i]).encode()
            files[f"{i:04d}.jpg"] = b"%d" % i
        paths.append(write_shard(tmp_path / f"{name}-{len(paths):03d}.tar", files))
    return paths


def test_canonical_order_and_bytes(tmp_path):
    shards(tmp_path, [2, 0, 1, 1, 0, 2, 0])
    source = open_source(f"tar:{tmp_path}/t-{{000..002}}.tar", holdout=0)
    assert contents(source) == [(0, b"1"), (0, b"4"), (0, b"6"), (1, b"2"), (1, b"3"), (2, b"0"), (2, b"5")]
    assert source.info.class_names == ("0", "1", "2")
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)
    assert contents(open_source(f"tar:{tmp_path}/t-*.tar", holdout=0)) == contents(source)
    assert source[0]["name"] == f"0001.jpg in {tmp_path}/t-000.tar"


def test_class_names(tmp_path):
    shards(tmp_path, ["cat", "ant", "cat", "bee"])
    assert open_source(f"tar:{tmp_path}", holdout=0).info.class_names == ("ant", "bee", "cat")


@pytest.mark.parametrize("how", ["write_tar", "tar", "webdataset"])
def test_folder_and_tar_give_identical_batches(folder, tmp_path, how):
    if how == "write_tar":
        write_tar(open_source(f"folder:{folder}", holdout=0), f"{tmp_path}/x-{{}}.tar", shard_size=7)
    elif how == "tar":
        with tarfile.open(tmp_path / "x-0.tar", "w") as archive:
            archive.add(folder, "images")
    else:
        files = {}
        for path in sorted(folder.rglob("*.*"), key=lambda p: p.stat().st_size):
            stem = str(path.relative_to(folder).with_suffix(""))
            files |= {stem + path.suffix: path.read_bytes(), stem + ".cls": stem.split("/")[0].encode()}
        write_shard(tmp_path / "x-0.tar", files)
    paths = f"folder:{folder}", f"tar:{tmp_path}/x-*.tar"
    for split in ("train", "val"):
        a, b = (open_source(p, split, holdout=0.3, seed=4) for p in paths)
        assert contents(a) == contents(b) and a.info.class_names == b.info.class_names
        batches = [train_batches(s, batch_size=5, seed=1, steps=9, canvas=8) for s in (a, b)]
        for one, other in zip(*batches, strict=True):
            assert all(np.array_equal(one[k], other[k]) for k in one)


def test_split_by_shard_name(tmp_path):
    shards(tmp_path, ["a", "b", "c", "a"], "train")
    shards(tmp_path, ["c", "b"], "val")
    train, val = open_source(f"tar:{tmp_path}"), open_source(f"tar:{tmp_path}", "val")
    assert len(train) == 4 and contents(val) == [(1, b"1"), (2, b"0")] and val.info.class_names == ("a", "b", "c")


def test_write_tar_round_trip_of_arrays(tmp_path):
    source = open_source("fake:23x6x3", holdout=0)
    paths = write_tar(source, f"{tmp_path}/f-{{:02d}}.tar", shard_size=10)
    assert [p[-7:] for p in paths] == ["-00.tar", "-01.tar", "-02.tar"] and not list(tmp_path.glob("*.tmp"))
    packed = open_source(f"tar:{tmp_path}/f-*.tar", holdout=0)
    assert packed.info.class_names == source.info.class_names
    order = np.argsort(np.arange(23) % 3, kind="stable")
    batches = (train_batches(s, batch_size=23, seed=0, steps=1, canvas=6) for s in (source, packed))
    by_index = [b["image"][np.argsort(b["index"])] for it in batches for b in it]
    assert np.array_equal(by_index[0][order], by_index[1])


def test_a_tar_that_changes_while_in_use(tmp_path):
    (path,) = shards(tmp_path, [0, 1, 1])
    source = open_source(f"tar:{path}", holdout=0)
    open(path, "wb").close()
    with pytest.raises(UserError, match=r"t-000\.tar changed while in use"):
        source[0]
    (tmp_path / "t-000.tar").unlink()
    with pytest.raises(Unreadable, match=r"0000\.jpg in .* cannot be read"):
        source[0]


def test_contradicting_labels(tmp_path):
    def refused(files, sentence):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        (tmp_path / "x").mkdir()
        for i, (data, suffix) in enumerate(files):
            write_shard(tmp_path / f"x/{i}.tar", {"a.jpg": b"x", f"a.{suffix}": data})
        with pytest.raises(UserError, match=sentence):
            open_source(f"tar:{tmp_path}/x", holdout=0)

    refused([(b"1", "cls"), (b"cat", "cls")], r"labels are numbers \(1\) and class names \('cat'\)")
    json = b'{"label": 0, "class": "%s"}'
    refused([(json % b"a", "json"), (json % b"b", "json")], "label 0 is class 'a' and also 'b'")
    refused([(json % b"1", "json"), (b"1", "cls")], "two labels .* have the same class name")
    refused([(b"0", "cls")], "one class only")


def test_an_image_is_read_alone(tmp_path, rng):
    """No more is read than asked for: the index of thousands of images is a few arrays."""
    data = encode(random_image(rng, 8, 8))
    files = {f"{i:05d}.{s}": d for i in range(500) for s, d in (("jpg", data), ("cls", b"%d" % (i % 2)))}
    source = open_source("tar:" + write_shard(tmp_path / "a.tar", files), holdout=0)
    assert len(pickle.dumps(source)) < 500 * 60 < 500 * len(data)
