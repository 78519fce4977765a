import json
import os
import pickle
import shutil

import numpy as np
import pytest

from tests.data.helpers import encode
from vit_jax.data.sources import open_source
from vit_jax.data.sources.base import Unreadable
from vit_jax.types import UserError


@pytest.fixture
def images(tmp_path):
    """Name -> bytes of five images, two of them in a folder."""
    (tmp_path / "sub").mkdir()
    files = {name: encode(np.full((3, 4, 3), i, np.uint8), "PNG") for i, name in enumerate("abc")}
    files |= {f"sub/{name}": encode(np.full((5, 4, 3), 9, np.uint8)) for name in "de"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return files


def contents(source):
    return [(source[i]["name"], source[i]["image"], source[i]["captions"]) for i in range(len(source))]


def test_rows_of_one_image_are_its_captions(tmp_path, images):
    (tmp_path / "t.csv").write_text(
        '\ufefftitle,filepath\nfirst,a\n"one, ""two""\nthree",sub/d\n\nagain,./sub/../a\nx,c\ny,' + f"{tmp_path}/a\n",
        encoding="utf-8",
    )
    source = open_source(f"csv:{tmp_path}/t.csv", holdout=0)
    assert contents(source) == [
        (f"{tmp_path}/a", images["a"], ("first", "again", "y")),
        (f"{tmp_path}/sub/d", images["sub/d"], ('one, "two"\nthree',)),
        (f"{tmp_path}/c", images["c"], ("x",)),
    ]
    assert source.info.captions == 3 and source.info.class_names == () and source.info.num_examples == len(source) == 3
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source) and source[1]["label"] == 0
    with pytest.raises(IndexError):
        source[3]


@pytest.mark.parametrize("path", ["filepath", "path", "image", "file_name", "filename"])
@pytest.mark.parametrize("caption", ["caption", "captions", "text", "title"])
def test_usual_columns(tmp_path, images, path, caption):
    (tmp_path / "t.tsv").write_text(f"width\t{caption}\t{path}\n5\ta, b\ta\n6\tc\tb\n")
    (tmp_path / "u.csv").write_text(f'{path} ,{caption}, id\na,"a, b",7\nb,c,8\n')
    rows = [{"id": 1, caption: ["a, b"], path: "a"}, {"id": 2, caption: "c", path: "b"}]
    (tmp_path / "v.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    sources = [
        open_source(f"{kind}:{tmp_path}/{name}", holdout=0)
        for kind, name in (("csv", "t.tsv"), ("csv", "u.csv"), ("jsonl", "v.jsonl"))
    ]
    assert contents(sources[0]) == [(f"{tmp_path}/a", images["a"], ("a, b",)), (f"{tmp_path}/b", images["b"], ("c",))]
    assert contents(sources[1]) == contents(sources[2]) == contents(sources[0])


def test_lists_of_captions_in_json(tmp_path, images):
    rows = [
        {"image": "a", "captions": ["x", " y "]},
        {"image": "b", "captions": "z"},
        {"image": "a", "captions": ["w"]},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    source = open_source(f"jsonl:{tmp_path}/t.jsonl", holdout=0)
    assert [source[i]["captions"] for i in range(2)] == [("x", "y", "w"), ("z",)] and source.info.captions == 3


def test_several_files_and_splits(tmp_path, images):
    (tmp_path / "train-0.csv").write_text("path,text\na,1\nb,2\n")
    (tmp_path / "train-1.csv").write_text("path,text\na,3\nsub/d,4\n")
    whole = open_source(f"csv:{tmp_path}", holdout=0)
    assert [c for _, _, c in contents(whole)] == [("1", "3"), ("2",), ("4",)]
    parts = [open_source(f"csv:{tmp_path}", split, holdout=1, seed=2) for split in ("train", "val")]
    assert sorted(contents(parts[0]) + contents(parts[1])) == sorted(contents(whole)) and len(parts[1]) == 1
    (tmp_path / "val.csv").write_text("path,text\nc,5\n")
    assert [c for _, _, c in contents(open_source(f"csv:{tmp_path}", "val"))] == [("5",)]
    assert len(open_source(f"csv:{tmp_path}")) == 3


def test_bad_captions_and_missing_images_are_left_to_their_reader(tmp_path, images):
    (tmp_path / "t.csv").write_bytes(b"path,text\na,\nb,\xff\xe9t\xe9\ngone.jpg,x\nsub,x\n")
    source = open_source(f"csv:{tmp_path}/t.csv", holdout=0)
    assert source[0]["captions"] == ("",) and source[1]["captions"] == ("\udcff\udce9t\udce9",)
    for i, reason in ((2, r"gone\.jpg cannot be read \(No such file"), (3, r"sub cannot be read \(Is a directory\)")):
        with pytest.raises(Unreadable, match=reason):
            source[i]
    rows = [
        '{"path": "a"}',
        '{"path": "b", "text": null}',
        '{"path": "c", "text": []}',
        '{"path": "a\\u0000", "text": "x"}',
    ]
    (tmp_path / "t.jsonl").write_text('{"path": "sub/d", "text": 5}\n' + "\n".join(rows[1:]))
    source = open_source(f"jsonl:{tmp_path}/t.jsonl", holdout=0)
    assert [source[i]["captions"] for i in range(3)] == [()] * 3 and source.info.captions == 1
    with pytest.raises(Unreadable, match="null byte"):
        source[3]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("", "has no column 'filepath', 'path'"),
        ("path,text\n", r"no rows in .*t\.csv"),
        ("paths,text\na,x\n", "has no column 'filepath', 'path', .*; did you mean 'paths'"),
        ("path,words\na,x\n", r"has no column 'label'.*name it: csv:.*\?label=COLUMN.* called 'caption' or 'captions'"),
        ("url,text\nhttp://x/a.jpg,x\n", "Addresses of images are not read; fetch them first"),
        ("path,text\na,x\nhttps://x/a.jpg,y\n", "line 3 of .* names the address 'https://x/a.jpg'; fetch the images"),
        ("path,text\na,x\n,y\n", "line 3 of .* names no image"),
        ("path,text\na,x,y\n", "line 2 of .* has 3 fields, but its header has 2; put a field"),
        ("path,text\na\n", "line 2 of .* has 1 fields"),
        ('path,text\na,"x\nb,y\n', r"line 3 of .* cannot be read .*; close every quote"),
        ('path,text\na,"x" y\n', r"line 2 of .* cannot be read .*; close every quote"),
    ],
)
def test_bad_tables(tmp_path, table, sentence):
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(UserError, match=sentence):
        open_source(f"csv:{tmp_path}/t.csv", holdout=0)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("\n", r"no rows in .*t\.jsonl"),
        ('{"path": "a", "text": "x"}\n{"path": "b", "te', r"line 2 of .* is no JSON \("),
        ("[1]\n", "line 1 of .* holds a JSON int; write one object a line"),
        ('{"path": "a", "text": "x"}\n[1]\n', "line 2 of .* holds a JSON list; write one object a line"),
        ('\n{"path": "a", "words": "x"}', "line 2 of .* has no column 'label'"),
        ('{"path": 5, "text": "x"}', "line 1 of .* names no image: it is 5"),
        ('{"path": "a", "text": "x", "text": "y"}', "line 1 of .* is no JSON .an object repeats the key 'text'"),
        ('{"path": "a", "label": [0, 2]}', r"line 1 of .* has the label \[0, 2\]: several labels of one image"),
        ('{"path": "a", "label": {"id": 1}}', "line 1 of .* a dict is neither a number nor a name"),
        ('{"path": "a", "label": 1.5}', "line 1 of .* a float is neither a number nor a name"),
        ('{"path": "a", "label": 1}\n{"path": "b", "label": null}', "1 images of .* have no label, others have one"),
        (
            '{"path": "a", "label": 1}\n{"path": "./a", "label": 2}',
            "line 2 of .* gives the label 2 to './a', an",
        ),
        ('{"path": "a", "label": -1}', "the label -1 in .* is outside 0.."),
        ('{"path": "a", "label": 99999999999999999999}', "the label 99999999999999999999 in .* is outside 0.."),
        ('{"path": "", "text": "x"}', "line 1 of .* names no image"),
        ("[" * 100_000, "line 1 of .* is no JSON"),
    ],
)
def test_bad_json(tmp_path, table, sentence):
    (tmp_path / "t.jsonl").write_text(table)
    with pytest.raises(UserError, match=sentence):
        open_source(f"jsonl:{tmp_path}/t.jsonl", holdout=0)


def test_no_table(tmp_path):
    (tmp_path / "tables.csv").touch()
    with pytest.raises(UserError, match=r"does not exist; did you mean '.*/tables\.csv'"):
        open_source(f"csv:{tmp_path}/table.csv")
    with pytest.raises(UserError, match=r"no \*\.jsonl files in the folder"):
        open_source(f"jsonl:{tmp_path}")


def labels(source):
    names = source.info.class_names
    return [(names[source[i]["label"]], source[i].get("captions")) for i in range(len(source))]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("image_id,label\na,cat\nb,dog\nc,cat\n", ["cat", "dog", "cat"]),
        ("File_Name;LABEL\na;2\nb;0\nc; 1.0\n", ["2", "0", "1"]),
        ("image|class\na|10\nb|x\nc|9\n", ["10", "x", "9"]),
        ("path\tlabel\na\té\nb\tz\nc\tE\n", ["é", "z", "E"]),
    ],
)
def test_tables_of_labels(tmp_path, images, table, expected):
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "t.csv").write_bytes(table.encode(encoding))
        source = open_source(f"csv:{tmp_path}/t.csv", holdout=0)
        assert labels(source) == [(name, None) for name in expected] and source.info.captions == 0
    numbers = all(name.isdigit() for name in expected)
    assert source.info.class_names == (("0", "1", "2") if numbers else tuple(sorted(set(expected))))


def test_labels_and_captions_together(tmp_path, images):
    rows = [{"image": "a", "label": 1, "text": "x"}, {"image": "b", "label": 0.0, "text": "y"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert labels(open_source(f"jsonl:{tmp_path}/t.jsonl", holdout=0)) == [("1", ("x",)), ("0", ("y",))]
    (tmp_path / "l.json").write_text(json.dumps(rows, indent=2))
    assert labels(open_source(f"jsonl:{tmp_path}/l.json", holdout=0)) == [("1", ("x",)), ("0", ("y",))]
    rows[1]["label"] = None
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    info = open_source(f"jsonl:{tmp_path}/t.jsonl", holdout=0).info
    assert info.class_names == () and info.notes == (
        f"1 images of {tmp_path}/t.jsonl have no label; the labels of the others were left out.",
    )


def test_columns_by_name(tmp_path, images):
    (tmp_path / "t.csv").write_text("pic:breed:caption\na:x:one, two\nb:y:three\n")
    spec = f"csv:{tmp_path}/t.csv?separator=:&image=pic&label=breed"
    assert labels(open_source(spec, holdout=0)) == [("x", ("one, two",)), ("y", ("three",))]
    assert labels(open_source(spec + "&caption=", holdout=0)) == [("x", None), ("y", None)]
    for end, sentence in (
        ("?labels=breed", "unknown key of 'csv:.*' 'labels'; did you mean 'label'"),
        ("?separator=:&image=pic&label=bread", "there is no column 'bread'; did you mean 'breed'"),
        ("?separator=::", "the separator '::' .* is not one character"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_source(f"csv:{tmp_path}/t.csv{end}", holdout=0)
    (tmp_path / "u.csv").write_text("path,caption,caption\na,x,y\n")
    with pytest.raises(UserError, match="there are several columns 'caption'"):
        open_source(f"csv:{tmp_path}/u.csv", holdout=0)


@pytest.mark.parametrize("separator", ["\t", "|"])
def test_quotes_of_tables_without_quoting(tmp_path, images, separator):
    lines = [("path", "caption"), ("a", '"Big" cat of 5" length'), ("b", '"'), ("c", 'x "y" z')]
    (tmp_path / "t.tsv").write_text("\n".join(map(separator.join, lines)))
    source = open_source(f"csv:{tmp_path}/t.tsv", holdout=0)
    assert [c for _, _, c in contents(source)] == [(caption,) for _, caption in lines[1:]]
    (tmp_path / "t.tsv").write_text(f'path{separator}caption\na{separator}"one\ntwo"\nb{separator}"x ""y"" z"\n')
    source = open_source(f"csv:{tmp_path}/t.tsv", holdout=0)
    assert [c for _, _, c in contents(source)] == [("one\ntwo",), ('x "y" z',)]


def test_line_ends_and_separators_of_a_text(tmp_path, images):
    text = "a red\u2028cat on\x0ca mat\x85in the\x1esun"
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "t.csv").write_bytes(end.join(["path,text", f"a,{text}", f"b,{text}"]).encode())
        (tmp_path / "t.jsonl").write_bytes(end.join([f'{{"path": "{p}", "text": "x\u2028y"}}' for p in "ab"]).encode())
        assert [c for _, _, c in contents(open_source(f"csv:{tmp_path}/t.csv", holdout=0))] == [(text,)] * 2
        assert [c for _, _, c in contents(open_source(f"jsonl:{tmp_path}/t.jsonl", holdout=0))] == [("x\u2028y",)] * 2


def test_pipes_devices_and_endless_files(tmp_path, images):
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "sparse", "wb") as f:
        f.truncate(2**33)
    (tmp_path / "t.csv").write_text("path,text\npipe,x\nsparse,x\n/dev/zero,x\n")
    source = open_source(f"csv:{tmp_path}/t.csv", holdout=0)
    for i, reason in enumerate(("no regular file", "more than 536,870,912 bytes", "no regular file")):
        with pytest.raises(Unreadable, match=reason):
            source[i]
    with pytest.raises(UserError, match=r"line 1 of .*sparse has more than 16,777,216 characters; it is no table"):
        open_source(f"csv:{tmp_path}/sparse", holdout=0)
    with pytest.raises(UserError, match=r"pipe' is not a file"):
        open_source(f"jsonl:{tmp_path}/pipe", holdout=0)


def test_names_in_another_normal_form(tmp_path, images):
    """As unpacked on a Mac, and as written on Linux, or the other way round."""
    (tmp_path / "cafe\u0301.png").write_bytes(images["a"])
    (tmp_path / "th\u00e9.png").write_bytes(images["b"])
    (tmp_path / "t.csv").write_text("path,text\ncaf\u00e9.png,x\nthe\u0301.png,x\n", encoding="utf-8")
    source = open_source(f"csv:{tmp_path}/t.csv", holdout=0)
    assert [source[i]["image"] for i in range(2)] == [images["a"], images["b"]]


def test_validation_counts_in_the_classes_of_training(tmp_path, images):
    (tmp_path / "train.csv").write_text("path,label\na,x\nb,y\nc,z\n")
    (tmp_path / "Validation.csv").write_text("path,label\nsub/d,z\nsub/e,y\n")
    val = open_source(f"csv:{tmp_path}", "val")
    assert [val[i]["label"] for i in range(2)] == [2, 1] and val.info.class_names == ("x", "y", "z")


def test_the_digest_is_not_of_the_place(tmp_path, images):
    (tmp_path / "t.csv").write_text("path,caption\na,a cat\nb,a dog\n")
    known = open_source(f"csv:{tmp_path}/t.csv", holdout=0).info.digest
    moved = shutil.copytree(tmp_path, tmp_path.with_name("moved"))
    assert open_source(f"csv:{moved}/t.csv", holdout=0).info.digest == known
    for text in ("path,caption\na,a cat\nb,a dig\n", "path,caption\nb,a dog\na,a cat\n"):
        (moved / "t.csv").write_text(text)
        assert open_source(f"csv:{moved}/t.csv", holdout=0).info.digest != known
