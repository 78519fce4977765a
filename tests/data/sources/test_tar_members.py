import pytest

from vit_jax.data.sources.tar_members import is_json, parse_captions, parse_label
from vit_jax.types import UserError


@pytest.mark.parametrize(
    ("data", "suffix", "expected"),
    [
        (b"7\n", ".cls", (7, "")),
        (b"cat", ".cls", (-1, "cat")),
        ('{"label": 3, "class": "käse"}'.encode(), ".json", (3, "käse")),
        (b'{"cls": "cat", "width": 3}', ".json", (-1, "cat")),
        (b'{"label": "12"}', ".json", (12, "")),
        (b'{"class": "dog"}', ".json", (-1, "dog")),
        (b"5", ".json", (5, "")),
        (b'{"caption": "no label"}', ".json", None),
    ],
)
def test_labels(data, suffix, expected):
    assert parse_label(data, suffix, "x") == expected


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b'{"label": 1.5}', b'{"label": true}', b'{"label": [1]}', b"{"])
def test_labels_that_are_none(data):
    with pytest.raises(UserError, match=r"the label b.* of x\.json is neither a number nor a class name"):
        parse_label(data, ".json", "x.json")


@pytest.mark.parametrize("number", [-1, 2**20, 10**30])
def test_labels_outside_range(number):
    with pytest.raises(UserError, match=rf"the label {number} of x\.cls is outside 0\.\.1048575"):
        parse_label(b"%d" % number, ".cls", "x.cls")


@pytest.mark.parametrize(
    ("data", "is_json", "expected"),
    [
        (b"a cat\n", False, ("a cat",)),
        ("käse\r\n\n two \n".encode(), False, ("käse", "two")),
        (b"a\x0bb", False, ("a\x0bb",)),
        ("a\u2028b\x85c\rd\r\n\ne\n".encode(), False, ("a\u2028b\x85c", "d", "e")),
        ("\ufeffa\u00e9".encode("utf-16-le"), False, ("a\u00e9",)),
        (b" \n\n", False, ()),
        (b"", False, ()),
        (b"\xe9t\xe9", False, ("\udce9t\udce9",)),
        (b'{"caption": "a", "captions": ["b"], "text": "c"}', True, ("a",)),
        (b'{"captions": ["b", " c\\n"], "text": "c"}', True, ("b", "c")),
        ('{"width": 3, "text": "käse"}'.encode(), True, ("käse",)),
        (b'{"text": "\xff"}', True, ("\udcff",)),
        (b'{"text": "\\ud800"}', True, ("\ud800",)),
        (b'{"caption": null}', True, ()),
        (b'{"caption": ""}', True, ("",)),
        (b'{"captions": ["a", 3]}', True, ()),
        (b'{"label": 3}', True, None),
        (b'["caption"]', True, None),
        (b'"caption"', True, None),
        (b"7", True, None),
        (b"{", True, None),
        (b"[" * 100_000, True, None),
    ],
)
def test_captions(data, is_json, expected):
    assert parse_captions(data, is_json) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"{}", True), (b"7", True), (b'{"a": ', False), (b"\xff", False), (b"", False), (b"[" * 100_000, False)],
)
def test_is_json(data, expected):
    assert is_json(data) == expected
