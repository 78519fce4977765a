"""Folders that appear whole or not at all, and the comparison that guards them."""

import os

import numpy as np
import pytest

from vit_jax.export import base, check
from vit_jax.types import UsageError, UserError


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_folder_appears_when_it_is_whole(tmp_path, umask):
    out, old = tmp_path / "a" / "out", os.umask(umask)
    try:
        with base.new_folder(out) as folder:
            (folder / "x").write_text("1")
            assert not out.exists()
    finally:
        os.umask(old)
    assert os.listdir(out.parent) == ["out"] and (out / "x").read_text() == "1"
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask  # others may do what the user lets them


@pytest.mark.parametrize("error", [KeyError("a bug"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), base.new_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("1")
        raise error
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_a_sentence(tmp_path):
    full = r"out' cannot be written \(No space left on device\); name another folder"
    with pytest.raises(UserError, match=full), base.new_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    (tmp_path / "file").write_text("")
    for inside in ("file/out", "file/deep/out"):
        error = r"cannot be written \((Not a directory|File exists)\)"
        with pytest.raises(UserError, match=error), base.new_folder(tmp_path / inside):
            pass
    assert os.listdir(tmp_path) == ["file"]


def test_where_it_may_not_go(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("there", "dangling"):
        with pytest.raises(UserError, match=f"{name}' exists already; name a new folder"):
            base.destination(tmp_path / name)
    with pytest.raises(UsageError, match=r"model\.onnx' names a file, but what is written is a folder; write 'model'"):
        base.destination(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="unknown format 'stablhlo'; did you mean 'stablehlo'"):
        check("stablhlo", tmp_path / "new")
    assert check("onnx", tmp_path / "vit.b16") == tmp_path / "vit.b16"


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_what_differs_is_refused(dtype, allowed):
    ours = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    off = np.eye(2, 3, dtype=np.float32)
    assert base.compare(ours + np.float32(0.9 * allowed) * off, ours, dtype) == pytest.approx(0.9 * allowed, rel=0.01)
    assert base.compare(1000 * ours + np.float32(500 * allowed) * off, 1000 * ours, dtype) < allowed  # relative
    for by in (1.1 * allowed, np.nan):
        with pytest.raises(
            UserError, match=r"^nothing was written: the program differs .* by \S+, which rounding does"
        ):
            base.compare(ours + np.float32(by) * off, ours, dtype)


def test_programs_of_a_classifier_and_of_towers(predictor, image_text):
    (one,) = base.programs(predictor(model={"depth": 1}))
    assert one.name == "model" and one.output["shape"] == ["batch", 7] and one.dtype == "float32"
    squares = one.examples(2)
    assert squares.shape == (2, 10, 10, 3) and squares.dtype == np.uint8 and squares.std(axis=(1, 2)).min() > 30
    towers = base.programs(image_text(text={"dtype": "bfloat16", "length": 16}))  # texts are of 12 tokens
    assert [(p.name, p.dtype, p.output["shape"]) for p in towers] == [
        ("image", "float32", ["batch", 16]), ("text", "bfloat16", ["batch", 16]),
    ]  # fmt: skip
    tokens = towers[1].examples(3)
    assert tokens.shape == (3, 12) and (tokens[:, 0] == 1).all() and (tokens == 2).any(axis=1).all()
    assert base.signature(towers)[0].startswith("images uint8[batch, 8, 8, 3]: RGB, ")
    assert base.signature(towers)[0].endswith("; tokens int32[batch, 12]: a text")
    assert base.signature(towers)[1] == "embeddings float32[batch, 16]: of unit length"
