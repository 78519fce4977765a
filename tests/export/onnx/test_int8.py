"""What int8 saves and what it costs, said."""

import logging
import re

import numpy as np
import pytest

from vit_jax.export import export
from vit_jax.export.onnx import file, int8
from vit_jax.types import UsageError


def test_a_classifier_is_smaller_and_says_what_it_lost(predictor, tmp_path):
    ours = predictor(model={"width": 64, "mlp_dim": 256, "depth": 1})
    whole, small = (export(ours, "onnx", tmp_path / name, int8=name == "small") for name in ("whole", "small"))
    sizes = [file.size(done.folder / "model.onnx") for done in (whole, small)]
    assert sizes[1] < 0.5 * sizes[0] and sorted(p.name for p in small.folder.iterdir()) == ["model.json", "model.onnx"]
    (note,) = small.notes
    said = re.fullmatch(
        r"model\.onnx in int8: 0\.\d MiB became 0\.\d; on 32 crops of photographs probabilities differ by (\S+) "
        r"at most, the first class is the same for (\d+)",
        note,
    )
    images = {"images": int8.photographs(32, 10)}
    before, after = (file.run(done.folder / "model.onnx", images) for done in (whole, small))
    assert float(said[1]) == pytest.approx(np.abs(after - before).max(), rel=0.05)
    assert int(said[2]) == (before.argmax(1) == after.argmax(1)).sum() >= 24
    assert 0 < float(said[1]) < 0.5 and whole.notes == ()


def test_weights_beside_a_program_are_read_by_whom_it_is(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(file, "LIMIT", 1000)
    folder = export(predictor(model={"depth": 1}), "onnx", tmp_path / "out", int8=True).folder
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.onnx", "model.onnx.data"]
    assert len({p.stat().st_mode for p in folder.iterdir()}) == 1


def test_towers_say_how_far_embeddings_turned(image_text, tmp_path):
    notes = export(image_text(), "onnx", tmp_path / "out", int8=True).notes
    assert re.search(
        r"^image.onnx in int8: .* crops of photographs the cosine between embeddings .* is 0\.9\d+", notes[0]
    )
    assert re.search(r"^text.onnx in int8: .* 32 random texts the cosine between embeddings .* is 0\.9\d+", notes[1])


def test_photographs_are_random_squares():
    images = int8.photographs(4, 16)
    assert images.shape == (4, 16, 16, 3) and images.dtype == np.uint8
    assert images.std(axis=(1, 2, 3)).min() > 10 and (images[0] != images[2]).any()


def test_other_formats_have_no_int8(predictor, tmp_path):
    with pytest.raises(UsageError, match=r"--int8 is for --to onnx, .* leave it out of --to stablehlo"):
        export(predictor(), "stablehlo", tmp_path / "out", int8=True)


@pytest.mark.parametrize("level", [logging.NOTSET, logging.CRITICAL])
def test_what_a_program_logs_is_as_it_was(level):
    logging.disable(level)
    try:
        with int8._quiet():
            assert not logging.getLogger().isEnabledFor(logging.WARNING)
        assert logging.root.manager.disable == level
    finally:
        logging.disable(logging.NOTSET)
