"""Names and labels of columns."""

import numpy as np
import pytest

from vit_jax.data.sources import columns
from vit_jax.data.sources.columns import Named
from vit_jax.types import UsageError, UserError


def test_keys_of_a_path():
    assert columns.parse("csv", "/a/b.csv?label=x y&separator=tab") == (
        "/a/b.csv",
        Named(label="x y", separator="tab"),
    )
    assert columns.parse("parquet", "/a/?.parquet") == ("/a/?.parquet", Named())
    assert columns.parse("parquet", "/a/?.parquet?image=jpg&caption=") == ("/a/?.parquet", Named("jpg", caption=""))
    with pytest.raises(UsageError, match="unknown key of 'parquet:/a' 'separator'; "):
        columns.parse("parquet", "/a?separator=;")


def test_usual_names_in_any_case():
    assert Named().find("image", ["id", " Image ", "Path"]) == "Path"
    assert Named().find("label", ["id"]) is None and Named(label="").find("label", ["label"]) is None
    assert Named(label="id").find("label", ["id", "label"]) == "id"
    with pytest.raises(UserError, match="there are several columns"):
        Named().find("label", ["Label", "label"])


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        ([2, 0, 2], [2, 0, 2], ("0", "1", "2")),
        ([1.0, 0.0], [1, 0], ("0", "1")),
        (["10", "9", " 9"], [10, 9, 9], tuple(map(str, range(11)))),
        (["3.0", "1"], [3, 1], ("0", "1", "2", "3")),
        (["b", "a", "1"], [2, 1, 0], ("1", "a", "b")),
        ([None, float("nan"), ""], [0, 0, 0], ()),
    ],
)
def test_labels_by_what_they_are(values, labels, names):
    found, found_names = columns.numbered([columns.as_label(v) for v in values], "it")
    assert found.tolist() == labels and found_names == names and found.dtype == np.int32


@pytest.mark.parametrize("value", [[1, 2], (), {"a": 1}, 0.5, float("inf"), True, b"x"])
def test_values_that_are_no_label(value):
    with pytest.raises(ValueError, match="label"):
        columns.as_label(value) if not isinstance(value, dict | float | bool | bytes) else _named(value)


def _named(value):
    try:
        columns.as_label(value)
    except ValueError as e:
        raise ValueError(f"label: {e}") from None


def test_labels_out_of_range():
    for label in (-1, 2**20, 10**30):
        with pytest.raises(UserError, match=rf"the label {label} in it is outside 0\.\.1048575"):
            columns.numbered([label], "it")
