import gzip
import io
import os
import pathlib
import tarfile

import numpy as np
import pytest

from tests.data.helpers import add_member, write_shard
from vit_jax.data.sources.tar_index import load_index
from vit_jax.types import UserError


def members(n=5):
    out = {}
    for i in range(n):
        out[f"a/{i:03d}.jpg"] = b"image%d" % i * (i + 1)
        out[f"a/{i:03d}.cls"] = b"%d\n" % (i % 3)
    return out


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_lead_to_the_bytes(tmp_path, format):
    long = "d" * 90 + "/" + "n" * 90  # needs an extended header in the GNU and pax formats
    files = {**members(), f"{long}.png": b"long", f"{long}.cls": b"2"}
    path = write_shard(tmp_path / "a.tar", files, format)
    index = load_index(path)
    data = pathlib.Path(path).read_bytes()
    found = {n: data[o : o + s] for n, o, s in zip(index.names, index.offset, index.size, strict=True)}
    assert found == {n: d for n, d in files.items() if not n.endswith(".cls")}
    assert index.numbers[index.code].tolist() == [0, 1, 2, 0, 1, 2]


def test_cache_is_used_until_the_file_changes(tmp_path, cache):
    path = write_shard(tmp_path / "a.tar", members())
    first = load_index(path)
    (saved,) = cache.iterdir()  # nothing temporary is left, nothing lies beside the data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "cache"]
    with np.load(saved, allow_pickle=False) as z:
        changed = dict(z)
    changed["offset"] = changed["offset"] + 1
    np.savez(saved, **changed)
    assert (load_index(path).offset == first.offset + 1).all()
    os.utime(path, ns=(1, 1))
    assert (load_index(path).offset == first.offset).all()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", b"\x80\x04."])
def test_a_damaged_cache_is_replaced(tmp_path, cache, damage):
    path = write_shard(tmp_path / "a.tar", members())
    load_index(path)
    (saved,) = cache.iterdir()
    whole = saved.read_bytes()
    saved.write_bytes(damage or whole[: len(whole) // 2])
    assert list(load_index(path).names) == [f"a/{i:03d}.jpg" for i in range(5)]
    assert saved.read_bytes()[:40] == whole[:40] and len(saved.read_bytes()) == len(whole)


def test_works_without_a_cache_and_says_so(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load_index(write_shard(tmp_path / "a.tar", members())).code) == 5
    assert "the index of a tar cannot be kept" in caplog.text


@pytest.mark.parametrize("keep", [1, 100, 512, 700, 1024, 512 * 7, 512 * 7 + 100, 512 * 20])
def test_every_truncation_is_noticed(tmp_path, keep):
    """``tarfile`` itself takes an archive that stops between or inside later headers for complete."""
    path = write_shard(tmp_path / "a.tar", members())
    data = pathlib.Path(path).read_bytes()
    assert not any(data[512 * 20 :])
    (tmp_path / "b.tar").write_bytes(data[:keep])
    with pytest.raises(UserError, match=r"b\.tar is truncated.*fetch or write it again\.$"):
        load_index(str(tmp_path / "b.tar"))
    (tmp_path / "b.tar").write_bytes(data[: 512 * 21])  # one block of zeros ends it
    assert len(load_index(str(tmp_path / "b.tar")).code) == 5


def test_empty_compressed_joined_and_foreign_files(tmp_path):
    def refused(data, sentence):
        (tmp_path / "b.tar").write_bytes(data)
        with pytest.raises(UserError, match=rf"the tar file .*b\.tar {sentence}"):
            load_index(str(tmp_path / "b.tar"))

    data = pathlib.Path(write_shard(tmp_path / "a.tar", members())).read_bytes()
    refused(b"", r"is empty \(0 bytes\)")
    refused(gzip.compress(data), "is compressed, which allows no random access")
    refused(data + data, "has data after its end mark")
    refused(b"hello" * 1000, "is truncated or no tar file")


def test_missing_partner_and_auxiliary_members(tmp_path):
    files = {**members(), "a/000.mask.png": b"m", "a/000.txt": b"t", "./.hidden.jpg": b"h", "a/._000.jpg": b"h"}
    index = load_index(write_shard(tmp_path / "a.tar", files))
    assert len(index.code) == 5 and index.others == 4
    with pytest.raises(UserError, match=r"a/9\.jpg in .* has no label; expected a/9\.cls or a/9\.json beside it"):
        load_index(write_shard(tmp_path / "b.tar", {**members(), "a/9.jpg": b"x"}))
    with pytest.raises(UserError, match="no images in the tar file"):
        load_index(write_shard(tmp_path / "c.tar", {"a.txt": b"x"}))


def test_folders_are_classes_where_no_label_member_is(tmp_path):
    files = {"./data/train/cat/x/1.jpg": b"1", "./data/train/cat/2.jpg": b"2", "./data/train/dog/1.jpg": b"3"}
    index = load_index(write_shard(tmp_path / "a.tar", files))
    assert [index.classes[c] for c in index.code] == ["cat", "cat", "dog"]
    with pytest.raises(UserError, match=r"x\.jpg in .* has no label"):
        load_index(write_shard(tmp_path / "b.tar", {"x.jpg": b"1", "a/y.jpg": b"2"}))
    with pytest.raises(UserError, match="holds several splits"):
        load_index(write_shard(tmp_path / "c.tar", {"train/a/x.jpg": b"1", "val/a/y.jpg": b"2"}))


def test_only_regular_members_count(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in members().items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
        link = tarfile.TarInfo("a/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert len(load_index(str(tmp_path / "a.tar")).code) == 5


def pairs(n=5):
    out = {}
    for i in range(n):
        out[f"a/{i:03d}.jpg"] = b"image%d" % i
        out[f"a/{i:03d}.txt"] = b"one %d\n" % i + b"two\n" * (i % 3)
    return out


def texts(index, path):
    data = pathlib.Path(path).read_bytes()
    return [data[o : o + s] for o, s in zip(index.text_offset, index.text_size, strict=True)]


def test_offsets_lead_to_the_captions(tmp_path):
    files = {**pairs(), "a/001.json": b'{"text": ["x", "y", "z", "w"]}', "a/002.json": b'{"width": 3}'}
    files = dict(sorted(files.items(), reverse=True))  # text before image, JSON after text
    path = write_shard(tmp_path / "a.tar", files)
    for index in (load_index(path), load_index(path)):  # made, and from the cache
        expected = [files["a/001.json"] if i == 1 else files[f"a/{i:03d}.txt"] for i in (4, 3, 2, 1, 0)]
        assert texts(index, path) == expected and index.text_json.tolist() == [False, False, False, True, False]
        assert (index.captions, index.others, index.lone_images, index.lone_texts) == (4, 0, 0, 0)
        assert index.code.tolist() == [-1] * 5 and len(index.numbers) == len(index.classes) == 0
        assert index.text_offset.dtype == np.int64 and index.text_size.dtype == np.int32


def test_json_comes_before_plain_text_in_any_order(tmp_path):
    json, text = b'{"caption": "j"}', b"t"
    for order in (("a.json", "a.txt"), ("a.txt", "a.json")):
        contents = {"a.json": json, "a.txt": text}
        path = write_shard(tmp_path / f"{order[0]}.tar", {"a.jpg": b"i", **{name: contents[name] for name in order}})
        assert texts(load_index(path), path) == [json]


def test_missing_partners_are_counted(tmp_path):
    files = {**pairs(), "a/1.jpg": b"i", "a/2.png": b"i", "a/3.txt": b"t", "a/000.mask.png": b"m", "a/x.npy": b"n"}
    index = load_index(write_shard(tmp_path / "a.tar", files))
    assert len(index.code) == 5 and (index.lone_images, index.lone_texts, index.others) == (2, 1, 2)
    path = write_shard(tmp_path / "b.tar", {"1.jpg": b"i", "2.txt": b"t"})
    with pytest.raises(
        UserError, match=r"1\.jpg in .* has no label; expected .* \.cls or \.json, or \.txt with its caption"
    ):
        load_index(path)


def test_labels_and_captions(tmp_path):
    both = {**members(), **{f"a/{i:03d}.txt": b"t" for i in range(5)}}
    index = load_index(write_shard(tmp_path / "a.tar", {**both, "a/9.txt": b"t"}))
    assert index.numbers[index.code].tolist() == [0, 1, 2, 0, 1]
    assert (index.captions, index.others, len(index.text_offset)) == (1, 1, 5)
    del both["a/003.txt"]  # not all have one: a data set of classes, as if there were no texts
    index = load_index(write_shard(tmp_path / "b.tar", both))
    assert (index.captions, index.others, len(index.text_offset)) == (0, 4, 0)
    json = {f"{i}.{s}": d for i in range(3) for s, d in (("jpg", b"i"), ("json", b'{"label": %d, "text": "t"}' % i))}
    index = load_index(write_shard(tmp_path / "c.tar", json))
    assert (index.captions, index.others, index.text_json.all()) == (1, 0, True) and len(index.numbers) == 3


def test_folders_are_no_classes_where_images_have_captions(tmp_path):
    files = {f"{d}/{i}.{s}": b"x" for d in "ab" for i in range(3) for s in ("jpg", "txt")}
    index = load_index(write_shard(tmp_path / "a.tar", files))
    assert len(index.code) == 6 and len(index.numbers) == 0 and index.captions == 1


def test_broken_json_is_one_unreadable_caption_or_a_bad_label(tmp_path):
    files = {**pairs(), "a/x.jpg": b"i", "a/x.json": b'{"text": "tru', "a/004.json": b'{"tr'}
    path = write_shard(tmp_path / "a.tar", files)
    index = load_index(path)
    assert len(index.code) == 6 and index.lone_images == 0
    assert texts(index, path)[4:] == [b'{"tr', b'{"text": "tru']  # what it would have said is unknown
    for name, files in (
        ("b", {**members(), "a/x.jpg": b"i", "a/x.json": b"{"}),
        ("c", {"x.jpg": b"i", "x.json": b"{"}),
    ):
        with pytest.raises(UserError, match=r"the label b'{' of .*x\.json in .* is neither a number nor a class name"):
            load_index(write_shard(tmp_path / f"{name}.tar", files))
    odd = {**pairs(), "a/x.jpg": b"i", "a/x.json": b'{"text": "fine", "label": 1.5}'}
    with pytest.raises(UserError, match=r"the label .* of a/x\.json"):
        load_index(write_shard(tmp_path / "d.tar", odd))
    odd["a/x.json"], odd["a/x.txt"] = b'{"label": 1.5}', b"fine"
    with pytest.raises(UserError, match=r"the label .* of a/x\.json"):
        load_index(write_shard(tmp_path / "e.tar", odd))


def test_a_text_of_more_than_a_megabyte_is_cut(tmp_path):
    files = {"a.jpg": b"i", "a.txt": b"x" * 2**20 + b"\nmore", "b.jpg": b"i", "b.txt": b"y"}
    index = load_index(write_shard(tmp_path / "a.tar", files))
    assert index.text_size.tolist() == [2**20, 1] and index.captions == 1


def write_twice(path, *pairs):
    with tarfile.open(path, "w") as archive:
        for name, data in pairs:
            add_member(archive, name, data)
    return str(path)


@pytest.mark.parametrize("again", ["1.jpg", "1.cls", "1.json", "1.txt"])
def test_a_name_that_comes_twice(tmp_path, again):
    files = [
        ("1.jpg", b"a"),
        ("1.cls", b"0"),
        ("1.json", b'{"label": 0}'),
        ("1.txt", b"x"),
        ("2.jpg", b"b"),
        ("2.cls", b"1"),
    ]
    assert len(load_index(write_twice(tmp_path / "a.tar", *files)).code) == 2
    twice = [*files, ("./" + again, dict(files)[again])]
    with pytest.raises(UserError, match=rf"b\.tar holds {again} twice, so labels cannot be told apart"):
        load_index(write_twice(tmp_path / "b.tar", *twice))


def test_two_files_that_say_different_things(tmp_path):
    def label(cls, json):
        index = load_index(write_shard(tmp_path / "a.tar", {"1.jpg": b"a", "1.cls": cls, "1.json": json}))
        return int(index.numbers[0]), index.classes[0]

    assert label(b"3", b'{"label": 3, "class": "cat"}') == label(b"cat", b'{"label": 3}') == (3, "cat")
    for cls, json in ((b"3", b'{"label": 2}'), (b"cat", b'{"label": "dog"}')):
        with pytest.raises(UserError, match=r"the label of 1\.json in .* is .*, another file beside the image says"):
            label(cls, json)


def test_links_to_images_are_images(tmp_path):
    """``tar`` writes a file that has two names as a link, and links of folders as they are."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add_member(archive, "cat/1.jpg", b"one")
        links = (("dog/2.jpg", tarfile.LNKTYPE, "cat/1.jpg"), ("dog/3.jpg", tarfile.SYMTYPE, "../cat/1.jpg"))
        lost = (("dog/4.jpg", tarfile.SYMTYPE, "/etc/passwd"), ("dog/5.jpg", tarfile.LNKTYPE, "gone.jpg"))
        for name, kind, target in (
            *links,
            *lost,
            ("dog/6.jpg", tarfile.FIFOTYPE, ""),
            ("dog/7.jpg", tarfile.CHRTYPE, ""),
        ):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, target
            archive.addfile(header)
    index = load_index(str(tmp_path / "a.tar"))
    assert list(index.names) == ["cat/1.jpg", "dog/2.jpg", "dog/3.jpg"] and index.others == 4
    data = (tmp_path / "a.tar").read_bytes()
    assert [data[o : o + s] for o, s in zip(index.offset, index.size, strict=True)] == [b"one"] * 3
    assert [index.classes[c] for c in index.code] == ["cat", "dog", "dog"]


@pytest.mark.parametrize("value", ["x,y", "1,2,3", "", "9" * 5000, "-1,-1"])
def test_odd_extended_headers(tmp_path, value):
    header = tarfile.TarInfo("1.jpg")
    header.pax_headers = {"GNU.sparse.map": value, "GNU.sparse.size": "5", "GNU.sparse.name": "1.jpg"}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        add_member(archive, "2.jpg", b"x")
        archive.addfile(header)
    with pytest.raises(UserError, match=r"a\.tar"):
        load_index(str(tmp_path / "a.tar"))


def test_a_header_that_claims_gigabytes(tmp_path):
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**32
    with open(tmp_path / "a.tar", "wb") as f:
        f.write(header.tobuf(tarfile.GNU_FORMAT))
        f.truncate(2**33)
    with pytest.raises(UserError, match=r"a\.tar is truncated or no tar file .a header of 4,294,967,296 bytes"):
        load_index(str(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    "data",
    [b"[" * 100_000, b"9" * 5000, b'{"label": ' + b"9" * 5000 + b"}", b'{"label": 1, "label": 2}'],
    ids=["deep", "digits", "number", "twice"],
)
def test_labels_that_break_readers(tmp_path, data):
    for suffix in ("json", "cls"):
        with pytest.raises(UserError, match=r"the label .* of 1\.(json|cls) in|'9999|no label"):
            path = write_shard(tmp_path / f"{suffix}.tar", {"1.jpg": b"a", f"1.{suffix}": data, "2.jpg": b"b"})
            load_index(path)


def test_lone_surrogates_of_json(tmp_path):
    files = {"1.jpg": b"a", "1.json": b'{"label": "caf\\ud800"}', "2.jpg": b"b", "2.json": b'{"label": "caf\\udce9"}'}
    index = load_index(write_shard(tmp_path / "a.tar", files))
    assert [index.classes[c] for c in index.code] == ["caf\udced\udca0\udc80", "caf\udce9"]
