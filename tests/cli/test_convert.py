"""``vit_jax convert``: from a file to every place and back, and its exit statuses."""

import json

import jax.export
import numpy as np
import pytest

from vit_jax import models
from vit_jax.cli import main
from vit_jax.convert import read, write
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe
from vit_jax.predict import Predictor

MODEL = models.create("vit", width=64, depth=1, heads=4, mlp_dim=96, patch=8, num_classes=3)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny ViT in timm's layout with class names."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("weights") / "tiny"
    params = {
        p: Tensor.of(rng.normal(size=s, scale=0.1).astype(np.float32)) for p, s in describe.shapes(MODEL, 16).items()
    }
    write.save(Stored(MODEL, params, Preprocess(16, 0.9, "bicubic"), ("ant", "bee", "cat")), path, "timm")
    return path


def test_there_and_back(source, tmp_path, capsys):
    run, npz, back = tmp_path / "run", tmp_path / "w.npz", tmp_path / "back"
    for a, b, to in ((source, run, "vit_jax"), (run, npz, "npz"), (npz, back, "timm")):
        assert main(["convert", str(a), str(b), "--to", to]) == 0
        printed = capsys.readouterr().out
        assert "vit, 31,1" in printed.replace("  ", " ") or "parameters, 3 classes, 16 px" in printed
        assert f"written to {b} as {to}" in printed
    assert (back / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (source, back))
    assert was["pretrained_cfg"]["mean"] == now["pretrained_cfg"]["mean"]
    with read.load(back) as found:
        assert found.class_names == ("ant", "bee", "cat") and found.preprocess.size == 16


def test_verify_prints_its_figures(source, tmp_path, capsys, timm):
    assert main(["convert", str(source), str(tmp_path / "run"), "--to", "vit_jax", "--verify"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("max |Δlogit|") == 4 and "timm" in printed and "photographs" in printed


def test_verify_fails_on_a_difference(source, tmp_path, capsys, timm):
    wrong = ["convert", str(source), str(tmp_path / "wrong"), "--to", "timm", "--model", "vit(heads=2)", "--verify"]
    assert main(wrong) == 1
    assert "above" in capsys.readouterr().out


def test_maps_that_are_such_already(source, tmp_path, capsys):
    assert main(["convert", str(source), str(tmp_path / "run"), "--to", "vit_jax", "--linear", "dense"]) == 0
    assert "its linear maps are such already" in capsys.readouterr().out
    wrong = ["convert", str(source), str(tmp_path / "wrong"), "--to", "vit_jax", "--linear", "mlp_linear=monark(2)"]
    assert main(wrong) == 2
    assert "did you mean 'monarch'" in capsys.readouterr().err


@pytest.mark.slow
def test_packing_by_one_command(run, tmp_path, capsys):
    """Dense to 2:4 with the levels of int8, which says what it costs; that to packed, which costs nothing; and back."""
    sparse, packed, dense = (tmp_path / name for name in ("sparse", "packed", "dense"))
    trained = "mlp_linear=sparse24(mask='frozen', bits=8)"
    assert main(["convert", str(run.workdir), str(sparse), "--to", "vit_jax", "--linear", trained]) == 0
    printed = capsys.readouterr().out
    assert "2 linear maps go from dense to sparse24" in printed and "50% of their weights were pruned away" in printed
    packing = ["--to", "vit_jax", "--linear", "mlp_linear=packed24(int8)", "--verify"]
    assert main(["convert", str(sparse), str(packed), *packing]) == 0
    printed = capsys.readouterr().out
    assert "2 linear maps go from sparse24" in printed and "to packed24(int8), exactly" in printed
    assert "pruned" not in printed and " bytes\n" in printed and printed.count("max |Δlogit|") == 2
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    expected = Predictor.load(sparse).probabilities(images)
    np.testing.assert_allclose(Predictor.load(packed).probabilities(images), expected, atol=2e-6)
    found = []
    for folder in (sparse, packed):  # the packed one is no model to train, but one to evaluate
        decays = "--config.optim.weight_decay=0.1"  # whose rules know nothing of packed parameters
        assert main(["evaluate", "--workdir", str(folder), "--json", str(tmp_path / "x.json"), decays]) == 0
        found.append(json.loads((tmp_path / "x.json").read_text()))
    assert found[0]["val/accuracy"] == found[1]["val/accuracy"] and found[1]["checkpoint"].startswith(str(packed))
    assert found[0]["val/loss"] == pytest.approx(found[1]["val/loss"], abs=1e-6)
    assert main(["predict", "--workdir", str(packed), str(run.images / "ant" / "0.png")]) == 0
    assert main(["export", "--workdir", str(packed), "--to", "stablehlo", str(tmp_path / "program")]) == 0
    program = jax.export.deserialize(bytearray((tmp_path / "program" / "model.stablehlo").read_bytes()))
    np.testing.assert_allclose(np.asarray(program.call(images)), expected, atol=2e-6)
    capsys.readouterr()
    assert main(["convert", str(packed), str(dense), "--to", "timm", "--linear", "dense"]) == 0
    assert "from packed24(int8) to dense, exactly" in capsys.readouterr().out
    np.testing.assert_allclose(Predictor.load(dense).probabilities(images), expected, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["int8", "int8(dynamic)"])
def test_int8_by_one_command(run, tmp_path, capsys, spec):
    """From a run that was trained dense; every command takes what comes of it but training."""
    small, dense = tmp_path / "small", tmp_path / "dense"
    assert main(["convert", str(run.workdir), str(small), "--to", "vit_jax", "--linear", spec]) == 0
    assert f"linear maps go from dense to {spec}, off by 0.00" in capsys.readouterr().out.replace("(float)", "")
    found = []
    for folder in (run.workdir, small):
        assert main(["evaluate", "--workdir", str(folder), "--json", str(tmp_path / "x.json")]) == 0
        found.append(json.loads((tmp_path / "x.json").read_text()))
    assert found[1]["val/loss"] == pytest.approx(found[0]["val/loss"], rel=0.02)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    expected = Predictor.load(small).probabilities(images)
    np.testing.assert_allclose(Predictor.load(run.workdir).probabilities(images), expected, atol=0.02)
    photo = str(run.images / "ant" / "0.png")
    assert main(["predict", "--workdir", str(small), photo]) == 0
    assert main(["embed", "--workdir", str(small), photo, "--output", str(tmp_path / "embedded.npy")]) == 0
    assert main(["export", "--workdir", str(small), "--to", "stablehlo", str(tmp_path / "program")]) == 0
    program = jax.export.deserialize(bytearray((tmp_path / "program" / "model.stablehlo").read_bytes()))
    np.testing.assert_allclose(np.asarray(program.call(images)), expected, atol=2e-6)
    capsys.readouterr()
    assert main(["convert", str(small), str(dense), "--to", "timm", "--linear", "dense"]) == 0
    assert f"from {spec} to dense, exactly" in capsys.readouterr().out.replace("(float)", "")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["gone", "x", "--to", "timm"], 1, "gone"),
        (["SOURCE", "x", "--to", "tim"], 2, "unknown format 'tim'; did you mean 'timm'?"),
        (["SOURCE", "x", "--to", "timm", "--model", "vit_b61"], 2, "did you mean 'vit_b16'"),
        (["SOURCE", "x.pth", "--to", "timm"], 2, "x.pth' is no place for timm"),
        (["SOURCE", "x", "--to", "vit_jax", "--linear", "packed25"], 2, "did you mean 'packed24'"),
        (["SOURCE", "x", "--to", "vit_jax", "--linear", "monarch(5)"], 1, "encoder/block_0/"),
        (["SOURCE", ".", "--to", "timm"], 1, "exists and is not overwritten"),
    ],
)
def test_mistakes(source, tmp_path, monkeypatch, capsys, arguments, status, words):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *(a.replace("SOURCE", str(source)) for a in arguments)]) == status
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
