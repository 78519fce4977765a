"""``export``: what is written, what is printed, and mistakes found before anything is loaded."""

import json

import jax.export
import numpy as np
import pytest

from vit_jax.cli import main
from vit_jax.predict import Predictor


def test_a_run_becomes_a_program(run, tmp_path, capsys):
    out = tmp_path / "deep" / "program"
    assert main(["export", "--workdir", str(run.workdir), "--to", "stablehlo", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{out / 'model.json'}  0.00 MiB") and "model.stablehlo  0." in lines[1]
    assert lines[2].startswith("input   images uint8[batch, 8, 8, 3]: RGB")
    assert lines[3] == "output  probabilities float32[batch, 3]: softmax over class_names"
    assert lines[4].startswith("checked on two inputs: outputs differ from the checkpoint's by ")
    assert lines[5] == "in Python, inside that folder:" and len(lines) == 8
    about = json.loads((out / "model.json").read_text())
    assert about["class_names"] == ["ant", "bee", "cat"]
    assert about["source"]["checkpoint"] == str(run.workdir / "checkpoints" / "3") and about["source"]["vit_jax"]
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    program = jax.export.deserialize(bytearray((out / "model.stablehlo").read_bytes()))
    expected = Predictor.load(run.workdir).probabilities(images)
    np.testing.assert_allclose(np.asarray(program.call(images)), expected, rtol=0, atol=1e-6)


def test_a_run_becomes_a_small_onnx_program(run, tmp_path, capsys):
    out = tmp_path / "small"
    assert main(["export", "--workdir", str(run.workdir), "--to", "onnx", "--int8", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"{out / 'model.onnx'}  0.0")
    assert lines[5].startswith("note: model.onnx in int8: 0.") and "probabilities differ by" in lines[5]
    assert lines[7] == "  session = onnxruntime.InferenceSession('model.onnx')"


def test_a_run_becomes_weights(run, tmp_path, capsys):
    checkpoint = str(run.workdir / "checkpoints" / "3")
    assert main(["export", "--checkpoint", checkpoint, "--to", "safetensors", str(tmp_path / "weights")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == [
        str(tmp_path / "weights" / name) for name in ("config.json", "model.safetensors")
    ]
    assert lines[2].startswith("input   images float32[batch, 3, 8, 8]") and "logits (softmax)" in lines[3]
    assert lines[-2] == "  model = timm.create_model('local-dir:.', pretrained=True).eval()"


@pytest.mark.parametrize(
    ("to", "out", "status", "text"),
    [
        ("stablehl", "new", 2, "unknown format 'stablehl'; did you mean 'stablehlo'?"),
        ("onnx", "model.onnx", 2, "model.onnx' names a file, but what is written is a folder; write 'model' instead."),
        ("onnx", ".", 1, "exists already; name a new folder."),
        (
            "stablehlo --int8",
            "new",
            2,
            "--int8 is for --to onnx, whose runtimes have products in int8; leave it out of",
        ),
        ("safetensors", "new", 1, "'/no/run' does not exist"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, to, out, status, text):
    assert main(["export", "--workdir", "/no/run", "--to", *to.split(), str(tmp_path / out)]) == status
    printed, err = capsys.readouterr()
    assert text in err and err.startswith("vit_jax export: ") and err.count("\n") == 1 and printed == ""
