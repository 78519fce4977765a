import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.helpers import encode
from vit_jax.data.sources import open_source
from vit_jax.types import UserError


def write(path, labels, *, names=None, struct=True, column="image", label="label", group=4, first=0):
    images = [encode(np.full((3, 4, 3), first + i, np.uint8), "PNG") for i in range(len(labels))]
    values = [{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(images)] if struct else images
    table = pa.table({column: values, label: labels})
    if names:
        features = {label: {"names": names, "_type": "ClassLabel"}, column: {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group)
    return images


@pytest.mark.parametrize("struct", [True, False])
def test_rows_in_order(tmp_path, struct):
    labels = [2, 0, 1, 1, 0, 2, 0, 0, 1]
    images = write(tmp_path / "a-0.parquet", labels[:5], names=["x", "y", "z"], struct=struct)
    images += write(tmp_path / "a-1.parquet", labels[5:], names=["x", "y", "z"], struct=struct, first=100)
    source = open_source(f"parquet:{tmp_path}/a-{{0..1}}.parquet", holdout=0)
    assert source.info.class_names == ("x", "y", "z") and len(source) == 9
    for other in (source, pickle.loads(pickle.dumps(source))):
        assert [(other[i]["label"], other[i]["image"]) for i in range(9)] == list(zip(labels, images, strict=True))
    assert source[6]["name"] == f"row 6 ({tmp_path}/a-1.parquet)"
    with pytest.raises(IndexError):
        source[9]


def test_few_row_groups_stay_in_memory(tmp_path, rng):
    images = write(tmp_path / "a.parquet", [0, 1] * 20, group=3)
    source = open_source(f"parquet:{tmp_path}/a.parquet", holdout=0)
    for i in rng.permutation(40):
        assert source[int(i)]["image"] == images[i]
        assert len(source._cache) <= 4


def test_split_by_file_name_and_by_seed(tmp_path):
    write(tmp_path / "train-00000-of-00001.parquet", ["b", "a", "c"] * 4, column="img", label="labels")
    whole, held = (open_source(f"parquet:{tmp_path}", split, holdout=3) for split in ("train", "val"))
    assert (len(whole), len(held)) == (9, 3) and sorted(held[i]["label"] for i in range(3)) == [0, 1, 2]
    write(tmp_path / "validation-00000-of-00001.parquet", ["c", "a"], column="img", label="labels")
    train, val = (open_source(f"parquet:{tmp_path}", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (12, 2) and train.info.class_names == ("a", "b", "c")
    assert [val[i]["label"] for i in range(2)] == [2, 0]


def test_mistakes(tmp_path):
    path = tmp_path / "a.parquet"

    def refused(sentence, labels=(), **options):
        if labels:
            write(path, list(labels), **options)
        with pytest.raises(UserError, match=sentence):
            open_source(f"parquet:{path}", holdout=0)[0]

    refused("the label 2 in .* is outside 0..1", [0, 1, 2], names=["x", "y"])
    refused("the label -1 in .* is outside 0..1048575", [0, -1])
    refused("the label 'z' in .* is not among its classes; allowed: x, y", ["x", "z"], names=["x", "y"])
    refused("1 rows of .* have no label", [0, None])
    refused(r"has no column 'filepath'.*; name it: parquet:.*\?image=COLUMN", [0, 1], column="images")
    refused("has no column 'label'", [0, 1], label="tag")
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "x"}] * 2, "label": [0, 1]}), path)
    refused(r"the image .*/x cannot be read \(No such file")
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}), path)
    refused("no rows in")
    write(path, [0, 1] * 50)
    path.write_bytes(path.read_bytes()[:-40])
    refused("is truncated or no parquet file")
    path.write_bytes(b"")
    refused("is truncated or no parquet file")


def test_large_row_groups_are_reported(tmp_path, monkeypatch):
    from vit_jax.data.sources import parquet

    monkeypatch.setattr(parquet, "_LARGE_GROUP", 100)
    write(tmp_path / "a.parquet", [0, 1] * 20)
    (note,) = open_source(f"parquet:{tmp_path}/a.parquet", holdout=0).info.notes
    assert "each read whole for one image" in note


def write_captions(path, texts, *, column="caption", labels=None, group=4, type=None):
    images = [{"bytes": encode(np.full((3, 4, 3), i, np.uint8), "PNG"), "path": None} for i in range(len(texts))]
    table = pa.table({"image": images, column: pa.array(texts, type) if type else texts})
    if labels:
        table = table.append_column("label", pa.array(labels))
    pq.write_table(table, path, row_group_size=group)


@pytest.mark.parametrize("column", ["caption", "captions", "text", "sentences"])
@pytest.mark.parametrize("type", [None, pa.large_string(), pa.string_view()])
def test_captions(tmp_path, column, type):
    write_captions(tmp_path / "a.parquet", ["a", "käse", " b\n", None, "", "c"], column=column, type=type)
    source = open_source(f"parquet:{tmp_path}/a.parquet", holdout=0)
    assert source.info.captions == 1 and source.info.class_names == () and len(source) == 6
    for other in (source, pickle.loads(pickle.dumps(source))):
        assert [other[i]["captions"] for i in range(6)] == [("a",), ("käse",), ("b",), (), ("",), ("c",)]
    assert source[4]["label"] == 0 and source[4]["image"] == encode(np.full((3, 4, 3), 4, np.uint8), "PNG")


@pytest.mark.parametrize("type", [None, pa.large_list(pa.large_string())])
def test_lists_of_captions_and_splits(tmp_path, type):
    rows = [["a"], ["b", "c"], [], None, ["d", "e", "f"], ["g"]] * 2
    write_captions(tmp_path / "train-0.parquet", rows, type=type)
    source = open_source(f"parquet:{tmp_path}", holdout=0)
    assert source.info.captions == 3
    assert [source[i]["captions"] for i in range(12)] == [tuple(row or ()) for row in rows]
    parts = [open_source(f"parquet:{tmp_path}", split, holdout=5) for split in ("train", "val")]
    assert [len(p) for p in parts] == [7, 5]
    write_captions(tmp_path / "validation-0.parquet", ["x"] * 3)
    val = open_source(f"parquet:{tmp_path}", "val")
    assert val.info.captions == 1 and val[2]["captions"] == ("x",)
    both = open_source(f"parquet:{tmp_path}/{{train,validation}}-0.parquet", holdout=0)  # a list and a text
    assert both.info.captions == 3 and both[4]["captions"] == ("d", "e", "f") and both[14]["captions"] == ("x",)


def test_captions_that_are_no_utf8(tmp_path):
    texts = pa.array([b"ab", b"\xffd"])
    broken = pa.Array.from_buffers(pa.string(), 2, texts.buffers())
    table = pa.table({"image": [{"bytes": b"i"}] * 2, "text": broken})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(f"parquet:{tmp_path}/a.parquet", holdout=0)
    assert [source[i]["captions"] for i in range(2)] == [("ab",), ("\udcffd",)]


def test_labels_and_captions(tmp_path):
    write_captions(tmp_path / "a.parquet", list("abcd"), labels=[1, 0, 1, 2])
    source = open_source(f"parquet:{tmp_path}/a.parquet", holdout=0)
    assert source.info.class_names == ("0", "1", "2") and source.info.captions == 1
    assert [(source[i]["label"], source[i]["captions"]) for i in range(2)] == [(1, ("a",)), (0, ("b",))]
    write(tmp_path / "b.parquet", [0, 1])  # no captions there: none at all
    source = open_source(f"parquet:{tmp_path}/{{a,b}}.parquet", holdout=0)
    assert source.info.captions == 0 and len(source) == 6 and not any("captions" in source[i] for i in range(6))
    write_captions(tmp_path / "c.parquet", list("ab"))
    with pytest.raises(UserError, match=r"c\.parquet has no labels, but other files beside it do"):
        open_source(f"parquet:{tmp_path}/{{a,c}}.parquet", holdout=0)
    write_captions(tmp_path / "d.parquet", [1, 2])
    with pytest.raises(UserError, match=r"has no column 'label'.*Captions are columns called 'caption' or 'captions'"):
        open_source(f"parquet:{tmp_path}/d.parquet", holdout=0)
