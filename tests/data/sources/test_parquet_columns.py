"""Columns of parquet files by their types."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.helpers import encode
from vit_jax.data.sources import open_source, parquet, parquet_columns
from vit_jax.data.sources.base import Unreadable
from vit_jax.types import UserError

IMAGE = encode(np.full((4, 5, 3), 9, np.uint8), "PNG")
VALUE = {"bytes": IMAGE, "path": "a.png"}


@pytest.fixture
def table(tmp_path):
    """Writes columns and opens them; ``image`` unless given."""

    def make(end="", metadata=None, **columns):
        n = len(next(iter(columns.values())))
        if not {"image", "jpg", "pic"} & set(columns):
            columns = {"image": pa.array([VALUE] * n), **columns}
        made = pa.table(columns)
        if metadata is not None:
            made = made.replace_schema_metadata({"huggingface": metadata})
        pq.write_table(made, tmp_path / "a.parquet", row_group_size=3)
        return open_source(f"parquet:{tmp_path}/a.parquet{end}", holdout=0)

    return make


def labels(source):
    return [source.info.class_names[source[i]["label"]] for i in range(len(source))]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([0.0, 10.0, 2.0, 2.0]), ["0", "10", "2", "2"]),
        (pa.array([2, 0, 1, 1], pa.uint8()), ["2", "0", "1", "1"]),
        (pa.array([True, False, True, True]), ["1", "0", "1", "1"]),
        (pa.array(["b", "a", "é", "b"]).dictionary_encode(), ["b", "a", "é", "b"]),
        (pa.array([2, 0, 2, 2]).dictionary_encode(), ["2", "0", "2", "2"]),
        (pa.array(["b", "a", "c", "b"], pa.large_string()), ["b", "a", "c", "b"]),
    ],
)
def test_labels_by_type(table, column, expected):
    assert labels(table(label=column)) == expected


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (pa.array([[0, 2], [1]]), "holds lists: several labels of one image cannot be learned"),
        (pa.array([[0, 1], [1, 0]], pa.list_(pa.int64(), 2)), "holds lists"),
        (pa.array([{"id": 0}, {"id": 1}]), "holds struct<id: int64>, which is neither a number nor a name"),
        (pa.array([b"a", b"\xff"]), "holds binary, which is neither"),
        (pa.array([0.5, 1.0]), "holds fractions"),
        (pa.array([float("nan"), 1.0]), "holds fractions"),
        (pa.array([2**63, 1], pa.uint64()), "holds fractions|outside"),
        (pa.array([0, None]), "1 rows of .* have no label"),
        (pa.array([None, None], pa.null()), "holds null"),
    ],
)
def test_labels_that_are_none(table, column, sentence):
    with pytest.raises(UserError, match=sentence):
        table(label=column)


@pytest.mark.parametrize(
    "metadata",
    ["", "{", "[" * 100_000, "5", "[]", '{"info": 5}', '{"info": {"features": {"label": {"names": 5}}}}', b"\xff",
     '{"info": {"features": {"label": {"names": ["x", 5]}}}}', '{"info": {"features": {"label": []}}}'],
)  # fmt: skip
def test_metadata_that_mean_nothing(table, metadata):
    assert table(label=[1, 0], metadata=metadata).info.class_names == ("0", "1")


def test_metadata_with_a_class_twice(table):
    features = {"label": {"names": ["x", "x"], "_type": "ClassLabel"}}
    with pytest.raises(UserError, match="name a class of 'label' twice"):
        table(label=[1, 0], metadata=json.dumps({"info": {"features": features}}))


def test_captions_by_type(table):
    for column in (pa.array(["a", "b"]).dictionary_encode(), pa.array(["a", "b"])):
        assert [table(caption=column)[i]["captions"] for i in range(2)] == [("a",), ("b",)]
    listed = pa.array([["a", "b"], ["c"]], pa.list_(pa.string()))
    assert table(caption=listed)[0]["captions"] == ("a", "b")


def test_images_that_are_absent_or_elsewhere(table, tmp_path):
    (tmp_path / "i.png").write_bytes(IMAGE)
    values = [VALUE, None, {"bytes": None, "path": "i.png"}, {"bytes": b"", "path": None}]
    values += [{"bytes": None, "path": f"{tmp_path}/i.png"}, {"bytes": None, "path": "/dev/zero"}]
    source = table(image=pa.array(values), label=[0, 1, 0, 1, 0, 1])
    assert source[0]["image"] == source[2]["image"] == source[4]["image"] == IMAGE
    for i, reason in ((1, "row 1 .* holds no image"), (3, "row 3 .* holds no image"), (5, "no regular file")):
        with pytest.raises(Unreadable, match=reason):
            source[i]
    assert table(image=["i.png", "i.png"], label=[0, 1])[1]["image"] == IMAGE


def test_columns_of_published_data(table):
    source = table(jpg=[IMAGE] * 2, key=["1", "2"], caption=["a", "b"])
    assert source[1]["image"] == IMAGE and source[1]["captions"] == ("b",)
    with pytest.raises(UserError, match=r"did you mean 'fine_label'.*; name it: parquet:.*\?label=COLUMN"):
        table(fine_label=[0, 1], coarse_label=[1, 0])
    assert labels(table("?label=fine_label", fine_label=[0, 1], coarse_label=[1, 0])) == ["0", "1"]
    assert labels(table("?image=pic&label=tag", pic=[IMAGE] * 2, tag=["u", "v"])) == ["u", "v"]


def test_a_damaged_page_is_one_unreadable_example(table, tmp_path):
    table(label=[0, 1] * 6)
    path = tmp_path / "a.parquet"
    data = bytearray(path.read_bytes())
    place = pq.ParquetFile(path).metadata.row_group(2).column(0)
    data[place.data_page_offset : place.data_page_offset + 8] = b"\xff" * 8
    path.write_bytes(data)
    source = open_source(f"parquet:{path}", holdout=0)
    assert source[0]["image"] == IMAGE
    with pytest.raises(Unreadable, match=r"row 6 .* cannot be read \("):
        source[6]


def test_limits(table, monkeypatch):
    monkeypatch.setattr(parquet_columns, "MAX_ROWS", 3)
    with pytest.raises(UserError, match="has 4 rows, 3 is the most of one file"):
        table(label=[0, 1, 0, 1])
    monkeypatch.setattr(parquet, "MAX_GROUP", 50)
    with pytest.raises(UserError, match=r"row groups of .* hold up to .* bytes, 50 is the most"):
        table(label=[0, 1])
