"""Weights in the file, or beside it where it cannot hold them."""

import numpy as np
import onnx

from vit_jax.export.onnx import file
from vit_jax.export.onnx.translate import translate

WEIGHT = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)


def test_weights_lie_beside_a_file_that_cannot_hold_them(tmp_path, monkeypatch):
    outputs, x = [], np.ones((2, 40), np.float32)
    for name, limit in (("whole", file.LIMIT), ("parts", 1000)):
        monkeypatch.setattr(file, "LIMIT", limit)
        path = tmp_path / name / "model.onnx"
        path.parent.mkdir()
        made = translate(lambda p, x: x @ p["w"] + p["b"], {"w": WEIGHT, "b": WEIGHT[:1]}, ("x", (40,), "float32"), "y")
        file.write(*made, {"names": ["ä"], "text": "plain"}, path)
        outputs.append(file.run(path, {"x": x}))
        assert {p.key: p.value for p in onnx.load(path).metadata_props} == {"names": '["ä"]', "text": "plain"}
    np.testing.assert_array_equal(*outputs)
    np.testing.assert_allclose(outputs[0], x @ WEIGHT + WEIGHT[0], rtol=1e-5)
    assert [p.name for p in (tmp_path / "whole").iterdir()] == ["model.onnx"]
    assert (tmp_path / "parts" / "model.onnx.data").stat().st_size == WEIGHT.nbytes  # the bias is small
    sizes = [file.size(tmp_path / name / "model.onnx") for name in ("whole", "parts")]
    assert sizes[0] > WEIGHT.nbytes and abs(sizes[1] - sizes[0]) < 300
