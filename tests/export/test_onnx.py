"""An ONNX program in ONNX Runtime against the checkpoint, and its preprocessing against ours."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vit_jax.export import onnx as export_onnx
from vit_jax.types import UserError

CONSUMER = """
{usage}
for name in ("one", "three"):
    numpy.save(name + ".out.npy", session.run(None, {"images": numpy.load(name + ".npy")})[0])
"""
PACKAGES = ("vit_jax", "jax", "torch", "timm")
ALONE = f"""
import sys
assert not [m for m in sys.modules if m.split(".")[0] in {PACKAGES}]
"""


@pytest.fixture(scope="module")
def packages(timm):
    """Whatever an export takes besides timm."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def written(packages, predictor, tmp_path_factory):
    """The predictor with a class token, as a program; what was written, and the predictor."""
    ours = predictor()
    done = export_onnx.write(ours, tmp_path_factory.mktemp("onnx") / "out")
    assert os.listdir(done.folder.parent) == ["out"] and sorted(os.listdir(done.folder)) == ["model.json", "model.onnx"]
    return done, ours


@pytest.mark.parametrize("process", ["this", pytest.param("another", marks=pytest.mark.slow)])
def test_it_runs_without_us(written, canvases, alone, capsys, process):
    """The usage in model.json as it stands, then batches of one and three."""
    written, ours = written
    folder = written.folder
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    Image.fromarray(canvases[0]).save(folder / "image.jpg")
    for name, images in {"one": canvases[:1], "three": canvases}.items():
        np.save(folder / f"{name}.npy", images)
    assert "\n".join(written.usage) in about["usage"]
    script = CONSUMER.replace("{usage}", about["usage"])
    if process == "this":
        alone(folder, script, *PACKAGES)
        printed = capsys.readouterr().out
    else:
        command = [sys.executable, "-c", script + ALONE]
        printed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True).stdout
    assert printed.startswith("[[")
    expected = ours.probabilities(canvases)
    for name, rows in {"one": expected[:1], "three": expected}.items():
        np.testing.assert_allclose(np.load(folder / f"{name}.out.npy"), rows, rtol=0, atol=1e-5)
    assert expected.max() > 0.3 and written.difference < 1e-5 and written.notes == ()


def test_what_it_says_of_itself(written):
    import onnx

    written, ours = written
    model = onnx.load(written.folder / "model.onnx")
    onnx.checker.check_model(model)
    props = {p.key: p.value for p in model.metadata_props}
    assert json.loads(props["class_names"]) == list(ours.class_names)
    assert json.loads(props["source"])["checkpoint"] == "run/checkpoints/7"
    assert json.loads(props["input"])["shape"] == ["batch", 10, 10, 3]
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"images": ["batch", 10, 10, 3], "probabilities": ["batch", 7]}
    assert written.signature[1] == "probabilities float32[batch, 7]: softmax over class_names"


def test_a_low_precision_model_without_a_head(packages, predictor, tmp_path):
    """It computes in float32, says so, and equals the checkpoint computed so."""
    ours = predictor((), model={"dtype": "bfloat16", "pool": "gap", "depth": 1})
    written = export_onnx.write(ours, tmp_path / "out")
    assert written.notes[-1] == "it computes in float32, the checkpoint in bfloat16"
    assert written.signature[1].startswith("features float32[batch, 32]") and written.difference < 1e-5


@pytest.mark.parametrize("output_activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "augment",
    [
        {"crop": 1.0, "interpolation": "bilinear"},
        {"crop": 0.8, "norm": "inception", "interpolation": "bilinear"},  # cut, not resampled
        {"crop": 0.5, "interpolation": "bicubic"},  # enlarged, beyond [0, 1] without clipping
    ],
    ids=["resized", "cut", "enlarged"],
)
def test_the_wrapper_prepares_as_we_do(timm, torch, predictor, canvases, tmp_path, augment, output_activation):
    ours = predictor(
        model={"depth": 1}, augment=augment, objective={"name": "classify", "output_activation": output_activation}
    )
    twin, notes = export_onnx.timm_twin(ours, tmp_path)
    wrapped = export_onnx._classifier(ours, twin)
    extreme = np.where(canvases > 127, np.uint8(255), np.uint8(0))
    with torch.no_grad():
        theirs = wrapped(torch.from_numpy(extreme)).numpy()
    np.testing.assert_allclose(theirs, ours.probabilities(extreme), rtol=0, atol=1e-5)
    assert notes == []


def test_a_model_that_timm_has_not(packages, predictor, tmp_path):
    with pytest.raises(UserError, match="timm has no layer before the head"):
        export_onnx.write(predictor(model={"pre_logits": 8}), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_missing_package_names_the_extra(packages, predictor, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"--to onnx takes the extra 'torch' .*onnxruntime.*: pip install '.*\[t"):
        export_onnx.write(predictor(), tmp_path / "out")
    assert os.listdir(tmp_path) == []
