"""The JSON files that belong to weights."""

import json

import pytest

from vit_jax.io import jsonfile, sidecar
from vit_jax.types import UserError


def write(path, value):
    path.write_text(json.dumps(value))


def test_which_files_belong_to_weights(tmp_path):
    weights = tmp_path / "model.safetensors"
    assert sidecar.beside(weights) == {}
    write(tmp_path / "config.json", {"a": 1})
    write(tmp_path / "preprocessor_config.json", {"b": 2})
    write(tmp_path / "other.json", {"c": 3})
    there = {"config.json": {"a": 1}, "preprocessor_config.json": {"b": 2}}
    assert sidecar.beside(weights) == there
    write(tmp_path / "open_clip_config.json", {"d": 4})
    for name in ("tokenizer.json", "spiece.model"):  # which are opened by those who need them
        (tmp_path / name).write_bytes(b"\xff")
        there[name] = tmp_path / name
    assert sidecar.beside(weights) == there | {"open_clip_config.json": {"d": 4}}
    write(tmp_path / "model.json", {"config.json": {"d": 4}})  # one of the same name wins
    assert sidecar.beside(weights) == {"config.json": {"d": 4}}
    write(tmp_path / "model.json", {"d": 4})  # the content alone is a config.json
    assert sidecar.beside(weights) == {"config.json": {"d": 4}}


def test_an_index_is_not_its_own_description(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    write(index, {"weight_map": {}})
    write(tmp_path / "config.json", {"a": 1})
    assert sidecar.beside(index) == {"config.json": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is no JSON"), ("[1]", "holds a JSON list"), ("3", "holds a JSON int")]
)
def test_what_is_no_description(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"config.json {words}"):
        sidecar.beside(tmp_path / "model.safetensors")


def test_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonfile, "MAX_BYTES", 10)
    write(tmp_path / "config.json", {"a": "0123456789"})
    with pytest.raises(UserError, match=r"cannot be read \(more than 10 bytes\); expected an object with the"):
        sidecar.beside(tmp_path / "model.safetensors")
