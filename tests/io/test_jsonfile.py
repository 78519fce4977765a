"""JSON, or a sentence about it."""

import pytest

from vit_jax.io import jsonfile
from vit_jax.types import UserError


def test_what_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, "é"]}', encoding="utf-8")
    assert jsonfile.read(tmp_path / "a.json") == {"a": [1, "é"]}
    assert jsonfile.parse(b"[1]", list, "it") == [1] and jsonfile.parse("{}", dict, "it") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", r"^the list is no JSON \(Expecting .*\); write one\.$"),
        ("[" * 100_000, r"^the list is no JSON \(.*recursion.*\); write one\.$"),
        (b"\xff", r"^the list is no JSON \(.*codec.*\); write one\.$"),
        ("{}", r"^the list holds a JSON dict; write one\.$"),
        ("3", r"^the list holds a JSON int; write one\.$"),
    ],
    ids=["torn", "deep", "bytes", "object", "number"],
)
def test_what_is_wrong_with_it(text, words):
    with pytest.raises(UserError, match=words):
        jsonfile.parse(text, list, "the list", "; write one")


def test_files_that_are_none(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"a\.json cannot be read \(.*No such file.*\); restore it\.$"):
        jsonfile.read(path, "; restore it")
    path.write_bytes(b"\xff{}")
    with pytest.raises(UserError, match=r"a\.json cannot be read \('utf-8' codec can't decode.*\)\.$"):
        jsonfile.read(path)
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match=r"a\.json holds a JSON list; restore it\.$"):
        jsonfile.read(path, "; restore it")
    monkeypatch.setattr(jsonfile, "MAX_BYTES", 5)
    with pytest.raises(UserError, match=r"a\.json has more than 5 bytes\.$"):
        jsonfile.read(path)
