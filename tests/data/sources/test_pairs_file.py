import json
import pickle

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
        ("path,words\na,x\n", "has no column 'caption', 'captions', 'text', 'title'; allowed: path, words"),
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
        ("[1]\n", "line 1 of .* holds a JSON list; write one object a line"),
        ('\n{"path": "a", "words": "x"}', "line 2 of .* has no column 'caption'"),
        ('{"path": 5, "text": "x"}', "line 1 of .* names no image: its 'path' is 5"),
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
