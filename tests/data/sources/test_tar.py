import dataclasses
import json
import pickle
import shutil
import tarfile

import numpy as np
import pytest

from tests.data.helpers import encode, random_image, write_shard
from vit_jax.data.framing import TRAINING
from vit_jax.data.image import decode
from vit_jax.data.loader import train_batches
from vit_jax.data.sources import open_source, write_tar
from vit_jax.data.sources.base import Unreadable
from vit_jax.data.sources.captioned import WithTokenizer
from vit_jax.data.sources.fake import Fake
from vit_jax.data.text import TextConfig
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


def test_an_image_is_read_alone(tmp_path, rng):
    """No more is read than asked for: the index of thousands of images is a few arrays."""
    data = encode(random_image(rng, 8, 8))
    files = {f"{i:05d}.{s}": d for i in range(500) for s, d in (("jpg", data), ("cls", b"%d" % (i % 2)))}
    source = open_source("tar:" + write_shard(tmp_path / "a.tar", files), holdout=0)
    assert len(pickle.dumps(source)) < 500 * 60 < 500 * len(data)


def captioned(tmp_path, rows, name="c", per_shard=3):
    """Shards of images with plain or JSON captions, in a folder of their own."""
    (tmp_path / name).mkdir(exist_ok=True)
    for start in range(0, len(rows), per_shard):
        files = {}
        for i, row in reversed(list(enumerate(rows))[start : start + per_shard]):
            text = row if isinstance(row, bytes) else json.dumps({"captions": row}).encode()
            files |= {f"{i:04d}.jpg": b"%d" % i, f"{i:04d}.{'txt' if isinstance(row, bytes) else 'json'}": text}
        write_shard(tmp_path / name / f"{start:03d}.tar", files)
    return f"tar:{tmp_path}/{name}"


def captions(source):
    return [(source[i]["image"], source[i]["captions"]) for i in range(len(source))]


def test_captions(tmp_path):
    path = captioned(tmp_path, [b"a cat\n", ["x", "y", "z"], b"p\nq", ["w"], b"\xff", [], b" ", ["a", ""]])
    source = open_source(path, holdout=0)
    expected = [("a cat",), ("x", "y", "z"), ("p", "q"), ("w",), ("\udcff",), (), (), ("a", "")]
    assert captions(source) == [(b"%d" % i, c) for i, c in enumerate(expected)]
    assert source.info.captions == 3 and source.info.class_names == () and source[3]["label"] == 0
    assert captions(pickle.loads(pickle.dumps(source))) == captions(source)
    train, val = (open_source(path, split, holdout=3) for split in ("train", "val"))
    assert sorted(captions(train) + captions(val)) == sorted(captions(source)) and len(val) == 3


def test_more_hosts_than_shards(tmp_path, rng):
    """Examples are shared out, not shards: eight hosts read two shards and make the batches that one host makes."""
    files = {}
    for i in range(20):
        files |= {f"{i:02d}.png": encode(random_image(rng, 4, 4), "PNG"), f"{i:02d}.txt": b"a\nb\nc %d" % i}
    for half in range(2):
        write_shard(tmp_path / f"{half}.tar", dict(list(files.items())[20 * half : 20 * half + 20]))
    source = WithTokenizer(open_source(f"tar:{tmp_path}", holdout=0), TextConfig(length=9).encoder())
    options = {"batch_size": 16, "seed": 3, "canvas": 4, "steps": 3}
    parts = [train_batches(source, places=np.arange(2 * p, 2 * p + 2), **options) for p in range(8)]
    for whole, *shares in zip(train_batches(source, **options), *parts, strict=True):
        assert all(np.array_equal(np.concatenate([b[k] for b in shares]), whole[k]) for k in whole)


def test_missing_partners_are_noted(tmp_path):
    path = captioned(tmp_path, [b"a", b"b", b"c"])
    write_shard(tmp_path / "c/x.tar", {"9.jpg": b"i", "9.txt": b"t", "8.jpg": b"i", "7.txt": b"t", "6.txt": b"t"})
    source = open_source(path, holdout=0)
    assert len(source) == 4 and source.info.notes == (
        f"1 images of {tmp_path}/c/000.tar and others have no caption and were left out.",
        f"2 captions of {tmp_path}/c/000.tar and others have no image and were left out.",
    )


def test_classes_and_captions(tmp_path):
    rows = {
        f"{i}.{s}": d
        for i in range(4)
        for s, d in (("jpg", b"%d" % i), ("cls", b"%d" % (i % 2)), ("txt", b"no %d" % i))
    }
    source = open_source("tar:" + write_shard(tmp_path / "a.tar", rows), holdout=0)
    assert source.info.class_names == ("0", "1") and source.info.captions == 1 and source.info.notes == ()
    assert [(source[i]["label"], source[i]["captions"]) for i in range(4)] == [
        (0, ("no 0",)),
        (0, ("no 2",)),
        (1, ("no 1",)),
        (1, ("no 3",)),
    ]
    write_shard(tmp_path / "b.tar", {"8.jpg": b"8", "8.cls": b"1"})  # now one image has none
    source = open_source(f"tar:{tmp_path}/{{a,b}}.tar", holdout=0)
    assert source.info.captions == 0 and "captions" not in source[0] and len(source) == 5
    write_shard(tmp_path / "c.tar", {"8.jpg": b"8", "8.txt": b"t"})
    sentence = (
        r"the images of .*a\.tar have classes, those of .*c\.tar have captions only; open them apart, or .* 'mix:'"
    )
    with pytest.raises(UserError, match=sentence):
        open_source(f"tar:{tmp_path}/{{a,c}}.tar", holdout=0)


@pytest.mark.parametrize("classes", [True, False])
def test_write_tar_keeps_captions(tmp_path, rng, classes):
    class Titled(Fake):
        def __getitem__(self, i):
            texts = tuple(f'käse {i} "{k}"' for k in range(1 + i % 3))
            return {**super().__getitem__(i), "label": i % 2 if classes else 0, "captions": texts}

    source = Titled(11, 4, 2)
    source.info = dataclasses.replace(source.info, captions=3, class_names=("a", "b") if classes else ())
    write_tar(source, f"{tmp_path}/t-{{}}.tar", shard_size=4)
    packed = open_source(f"tar:{tmp_path}/t-*.tar", holdout=0)
    assert dataclasses.replace(packed.info, notes=()) == source.info and packed.info.notes == ()
    order = sorted(range(11), key=lambda i: (i % 2 if classes else 0, i))
    for k, i in enumerate(order):
        assert packed[k]["captions"] == source[i]["captions"] and packed[k]["label"] == source[i]["label"]
        assert np.array_equal(decode(packed[k], 4, TRAINING)[0], source[i]["image"])


def test_write_tar_of_the_embedded_pairs(tmp_path):
    source = open_source("digits_pairs", "val")
    write_tar(source, f"{tmp_path}/t-{{}}.tar", shard_size=300)
    packed = open_source(f"tar:{tmp_path}", holdout=0)
    assert packed.info == source.info
    encoder = TextConfig(length=52).encoder()
    batches = [
        train_batches(WithTokenizer(s, encoder), batch_size=50, seed=1, steps=2, canvas=16) for s in (source, packed)
    ]
    for one, other in zip(*batches, strict=True):
        assert one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("x.tar", r"has no field for the number of the shard, and there are 3; write '.*x-\{:05d\}\.tar'"),
        ("no/x-{}.tar", "there is no folder '.*/no'"),
        ("there-{}.tar", r"'.*there-1\.tar' exists; remove it or name other files"),
        ("{a}.tar", "is no pattern of shards"),
        ("{:z}.tar", "is no pattern of shards"),
        ("{", "is no pattern of shards"),
        ("{}/x.tar", "there is no folder '.*/0'"),
        ("{0.__class__}.tar", "is no pattern of shards"),
        ("{:999999999d}.tar", "is no pattern of shards"),
        ("y" * 300 + "{}.tar", "cannot be written .File name too long"),
    ],
)
def test_patterns_of_shards_that_are_refused(tmp_path, pattern, sentence):
    (tmp_path / "there-1.tar").write_bytes(b"mine")
    with pytest.raises(UserError, match=sentence):
        write_tar(Fake(11, 4, 2), f"{tmp_path}/{pattern}", shard_size=4)
    assert [p.name for p in tmp_path.iterdir()] == ["there-1.tar"]
    assert (tmp_path / "there-1.tar").read_bytes() == b"mine"


def test_one_shard_needs_no_number(tmp_path):
    assert write_tar(Fake(11, 4, 2), f"{tmp_path}/x.tar") == [f"{tmp_path}/x.tar"]
    assert len(open_source(f"tar:{tmp_path}/x.tar", holdout=0)) == 11
    names = write_tar(Fake(11, 4, 2), f"{tmp_path}/{{:d}}-{{:03}}.tar", shard_size=6)
    assert [name.rpartition("/")[2] for name in names] == ["0-000.tar", "1-001.tar"]
    for size in (0, -1):
        with pytest.raises(UserError, match=f"shard_size={size} is not allowed"):
            write_tar(Fake(11, 4, 2), f"{tmp_path}/z{{}}.tar", shard_size=size)


def test_a_pack_that_fails_leaves_nothing(tmp_path):
    class Broken(Fake):
        def __getitem__(self, i):
            if i == 9:
                raise Unreadable("the image 9 cannot be read")
            return super().__getitem__(i)

    with pytest.raises(UserError, match="image 9"):
        write_tar(Broken(11, 4, 2), f"{tmp_path}/x-{{}}.tar", shard_size=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "BMP", "PNG", "JPEG"])
def test_packed_formats_are_found_again(tmp_path, kind):
    image = encode(np.full((4, 5, 3), 9, np.uint8), kind)
    write_shard(tmp_path / "a.tar", {f"{c}/{i}.jpg": image for c in "xy" for i in range(2)})
    source = open_source(f"tar:{tmp_path}/a.tar", holdout=0)
    write_tar(source, f"{tmp_path}/b.tar")
    packed = open_source(f"tar:{tmp_path}/b.tar", holdout=0)
    assert [packed[i]["image"] for i in range(4)] == [image] * 4 and packed.info.class_names == ("x", "y")


def test_the_digest_is_that_of_other_shards_of_the_same(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    for place, labels, size in ((a, "abcabc", 3), (b, "abcabc", 2), (c, "abcabb", 3)):
        place.mkdir()
        shards(place, labels, per_shard=size)
    known, same, other = (open_source(f"tar:{place}/*.tar", holdout=0).info.digest for place in (a, b, c))
    assert known == same != other
