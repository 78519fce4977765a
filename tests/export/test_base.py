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
def test_what_differs_is_refused(predictor, dtype, allowed):
    ours = predictor(model={"dtype": dtype, "depth": 1})
    seen = []

    def off(by):
        def run(images):
            seen.append(images)
            outputs = ours.probabilities(images).copy()
            outputs[1, 2] += np.float32(by)
            return outputs

        return run

    assert base.compare(off(0.9 * allowed), ours) == pytest.approx(0.9 * allowed, rel=0.01)
    for by in (1.1 * allowed, np.nan):
        with pytest.raises(UserError, match=r"^nothing was written: the program differs .* by \S+ \(rounding does not"):
            base.compare(off(by), ours)
    assert seen[0].shape == (2, 10, 10, 3) and seen[0].dtype == np.uint8 and seen[0].std(axis=(1, 2)).min() > 30


def test_what_is_known_to_differ_may_differ_a_little(predictor):
    ours = predictor(model={"depth": 1})
    near, far = (lambda images, by=by: ours.probabilities(images) + np.float32(by) for by in (0.005, 0.03))
    assert base.compare(near, ours, ["other epsilons"]) == pytest.approx(0.005, rel=0.01)
    with pytest.raises(UserError, match=r"by 0\.03 \(other epsilons\)\."):
        base.compare(far, ours, ["other epsilons"])
