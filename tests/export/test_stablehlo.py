"""A program on disk against the checkpoint, run by what has JAX and not us."""

import json
import os
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image

from vit_jax.export import base, stablehlo
from vit_jax.types import UserError

CONSUMER = """
{usage}
for name in ("one", "three"):
    numpy.save(name + ".out.npy", numpy.asarray(program.call(numpy.load(name + ".npy"))))
"""
ALONE = """
import sys
assert not [m for m in sys.modules if m.split(".")[0] in ("vit_jax", "flax")], "somebody imported us"
"""


@pytest.fixture(scope="module")
def written(predictor, canvases, tmp_path_factory):
    """What was written of a classifier, the classifier, and a script: the usage as it stands, then two batches."""
    ours, folder = predictor(), tmp_path_factory.mktemp("stablehlo") / "out"
    written = stablehlo.write(ours, folder)
    assert os.listdir(folder.parent) == ["out"]
    assert sorted(os.listdir(folder)) == ["model.json", "model.stablehlo"]
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert "\n".join(written.usage) in about["usage"] and about["usage"].count("\n") == 9
    Image.fromarray(canvases[0]).save(folder / "image.jpg")
    for name, images in {"one": canvases[:1], "three": canvases}.items():
        np.save(folder / f"{name}.npy", images)
    return written, ours, CONSUMER.replace("{usage}", about["usage"])


def check(written, ours, canvases, printed):
    """Batches of one and of three were computed."""
    assert printed.startswith("[[0.")
    expected = ours.probabilities(canvases)
    for name, rows in {"one": expected[:1], "three": expected}.items():
        np.testing.assert_allclose(np.load(written.folder / f"{name}.out.npy"), rows, rtol=0, atol=1e-6)
        (written.folder / f"{name}.out.npy").unlink()
    assert expected.max() > 0.3 and written.difference < 1e-6


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the usage is two lines, and opens a file in one
def test_it_runs_without_us(written, canvases, alone, capsys):
    written, ours, script = written
    alone(written.folder, script, "vit_jax", "flax")
    check(written, ours, canvases, capsys.readouterr().out)


@pytest.mark.slow
def test_another_process_runs_it_without_us(written, canvases):
    written, ours, script = written
    command = [sys.executable, "-W", "error", "-c", script + ALONE]
    done = subprocess.run(command, cwd=written.folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    check(written, ours, canvases, done.stdout)


def test_what_it_says_of_itself(predictor, tmp_path):
    ours = predictor(objective={"name": "classify", "output_activation": "sigmoid"})
    written = stablehlo.write(ours, tmp_path / "deep" / "out")
    about = json.loads((tmp_path / "deep" / "out" / "model.json").read_text(encoding="utf-8"))
    assert about["class_names"] == list(ours.class_names)
    assert about["input"]["shape"] == ["batch", 10, 10, 3] and about["input"]["dtype"] == "uint8"
    assert about["output"]["shape"] == ["batch", 7] and about["output"]["meaning"].startswith("sigmoid of each")
    assert about["source"] == {"checkpoint": "run/checkpoints/7", "commit": "abc"}
    assert about["platforms"] == ["cpu", "tpu", "cuda"] and about["jax"] == jax.__version__
    assert written.signature[0].startswith("images uint8[batch, 10, 10, 3]: RGB")
    assert written.signature[1] == "probabilities float32[batch, 7]: sigmoid of each of class_names"
    program = jax.export.deserialize(bytearray((written.folder / "model.stablehlo").read_bytes()))
    assert about["calling_convention_version"] == program.calling_convention_version
    assert str(program.in_avals[0].shape) == "(batch, 10, 10, 3)" and program.platforms == ("cpu", "tpu", "cuda")


def test_kernels_are_stored_in_the_compute_type(predictor):
    """Half the bytes, and the numbers are the same bit for bit: the model rounds them anyway."""
    wide, narrow = (
        _program(predictor(model={"dtype": dtype, "width": 64, "mlp_dim": 256, "pool": "gap"}))
        for dtype in ("float32", "bfloat16")
    )
    sizes = [len(p.mlir_module_serialized) for p in (wide, narrow)]
    assert sizes[0] > 400_000 and sizes[1] < 0.6 * sizes[0]


def _program(ours):
    (of,) = base.programs(ours)
    return stablehlo.program(of, stablehlo._cast(ours.model, ours.params))


def test_structured_maps_lower_for_every_platform(predictor, tmp_path):
    """Some choose by the number of images: a monarch(2), whose factors have the weights of the dense map."""
    maps = {"mlp_linear": "monarch(2)", "qkv_linear": "block_sparse(0.5, block=8)", "out_linear": "packed24"}
    ours = predictor(model={"depth": 1, "mlp_dim": 64, **maps})
    assert stablehlo.write(ours, tmp_path / "out").difference < 1e-6
    about = json.loads((tmp_path / "out" / "model.json").read_text(encoding="utf-8"))
    assert about["platforms"] == ["cpu", "tpu", "cuda"]


def test_towers_are_two_programs(image_text, tmp_path):
    ours = image_text(text={"dtype": "bfloat16"})
    written = stablehlo.write(ours, tmp_path / "out")
    names = ["image.stablehlo", "model.json", "text.stablehlo", "tokenizer.json"]
    assert sorted(os.listdir(written.folder)) == names and written.difference < 1e-6
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    image, text = (
        jax.export.deserialize(bytearray((written.folder / f"{name}.stablehlo").read_bytes())).call
        for name in ("image", "text")
    )
    np.testing.assert_allclose(image(images), ours.embed(images), rtol=0, atol=1e-6)
    np.testing.assert_allclose(text(ours.codec(["a", "bc"])), ours.embed_texts(["a", "bc"]), rtol=0, atol=1e-6)


def test_without_a_head_the_features_come_out(predictor, canvases, tmp_path):
    ours = predictor(
        (), model={"pool": "gap", "depth": 1}, objective={"name": "classify", "output_activation": "sigmoid"}
    )
    written = stablehlo.write(ours, tmp_path / "out")
    assert written.signature[1] == "features float32[batch, 32]: pooled features of a model without a head"

    @jax.jit
    def features(images):
        images = ours.prepared(images)
        return ours.model.apply({"params": ours.params}, images, method="features").pooled

    pooled = features(canvases)
    np.testing.assert_allclose(ours.probabilities(canvases), np.asarray(pooled), rtol=1e-4, atol=1e-5)
    assert np.abs(pooled).max() > 1 > written.difference


def test_too_many_parameters_are_refused(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(stablehlo, "LIMIT", 1000)
    with pytest.raises(UserError, match=r"parameters take 0\.0 GiB and a program holds less than 2 GiB; .*safetensors"):
        stablehlo.write(predictor(), tmp_path / "out")
    assert os.listdir(tmp_path) == []
