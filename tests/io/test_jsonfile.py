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
        ("[" * 100_000, r"^the list is no JSON \(nested too deeply\); write one\.$"),
        (b"\xff", r"^the list is no JSON \(.*codec.*\); write one\.$"),
        ("9" * 5000, r"^the list is no JSON \(Exceeds the limit.*\); write one\.$"),
        ('[{"a": {"b": 1, "b": 2}}]', r"^the list is no JSON \(an object repeats the key 'b'\); write one\.$"),
        ("{}", r"^the list holds a JSON dict; write one\.$"),
        ("3", r"^the list holds a JSON int; write one\.$"),
    ],
    ids=["torn", "deep", "bytes", "digits", "twice", "object", "number"],
)
def test_what_is_wrong_with_it(text, words):
    with pytest.raises(UserError, match=words):
        jsonfile.parse(text, list, "the list", "; write one")


def test_files_that_are_none(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"a\.json cannot be read \(.*No such file.*\); restore it\.$"):
        jsonfile.read(path, "; restore it")
    path.write_bytes(b"\xff{}")
    with pytest.raises(UserError, match=r"a\.json is no JSON \('utf-8' codec can't decode.*\)\.$"):
        jsonfile.read(path)
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match=r"a\.json holds a JSON list; restore it\.$"):
        jsonfile.read(path, "; restore it")
    monkeypatch.setattr(jsonfile, "MAX_BYTES", 5)
    with pytest.raises(UserError, match=r"a\.json cannot be read \(more than 5 bytes\)\.$"):
        jsonfile.read(path)


def test_encodings_and_what_is_written(tmp_path):
    path = tmp_path / "a.json"
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        path.write_bytes('{"a": "é\u2028"}'.encode(encoding))
        assert jsonfile.read(path) == {"a": "é\u2028"}
    value = {"caf\udce9": ["猫", "\ud800", None, 1.5]}
    jsonfile.write(path, value)
    assert jsonfile.read(path) == value and "猫" in path.read_text("utf-8") and "caf\\udce9" in path.read_text("utf-8")
    with pytest.raises(ValueError):
        jsonfile.write(path, [float("nan")])
    assert jsonfile.read(path) == value
    jsonfile.write(path, [{1}], default=list)
    assert path.read_text() == "[\n [\n  1\n ]\n]\n"
