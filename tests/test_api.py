"""``import vit_jax as vj``: light, complete, and the same numbers as the command line."""

import inspect
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import vit_jax as vj

TINY = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
CONFIG = {
    "model": {"name": "vit", "pool": "gap", **TINY},
    "data": {"canvas": 8, "holdout": 6, "workers": 1},
    "augment": {"size": 8, "train": ("flip",)},
    "batch_size": 8,
    "duration": "2 steps",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three classes of eight files of 8 x 8."""
    root, rng = tmp_path_factory.mktemp("api") / "images", np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cat")):
        (root / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 128, (8, 8, 3)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def config(images):
    return {**CONFIG, "data": {**CONFIG["data"], "path": f"folder:{images}"}}


@pytest.fixture(scope="module")
def result(images, config):
    """A run of two steps, of a ConfigDict with a change, that a hook watched."""
    seen = []
    changed = ConfigDict({**config, "duration": "9 steps"})
    hook = lambda moment: seen.append(moment.step)  # noqa: E731
    out = vj.train(changed, images.parent / "run", [hook], changes={"duration": "2 steps"})
    assert seen == [1, 2]
    return out


@pytest.fixture(scope="module")
def run(images, result):
    return images.parent / "run"


@pytest.fixture(scope="module")
def model(run):
    return vj.load(run)


def test_the_import_is_light():
    code = "import sys, time; t = time.process_time(); import vit_jax; t = time.process_time() - t; "
    code += "print(t, sorted({m.split('.')[0] for m in sys.modules} & {'jax', 'flax', 'numpy', 'orbax', 'matplotlib'}))"
    best = min(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2))
    seconds, heavy = best.split(maxsplit=1)
    assert float(seconds) < 0.05 and heavy == "[]\n"


def test_every_public_name_is_there_and_documented():
    assert set(vj.PUBLIC) < set(dir(vj)) and set(vj.__all__) < set(dir(vj))
    for name in vj.PUBLIC:
        assert inspect.getdoc(getattr(vj, name)), name
    for name in (n for n, home in vj.PUBLIC.items() if home == "api" and n.islower()):
        assert "Example:" in getattr(vj, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        vj.nothing  # noqa: B018


def test_a_function_keeps_its_name_from_the_subpackage(monkeypatch):
    for name in ("train", "convert", "export", "predict", "create"):
        submodule = sys.modules[f"vit_jax.{name}"]
        setattr(vj, name, submodule)  # as the import system does
        assert inspect.isfunction(getattr(vj, name))
    vj.other = json  # all else is a module like others
    del vj.other


def test_a_run_from_python(result, run, model):
    assert result.report.metrics["examples"] == 6 and int(result.state.step) == 2
    assert result.config["duration"] == "2 steps"
    assert model.source == str(run / "checkpoints" / "2") and model.class_names == ("ant", "bee", "cat")
    jax.tree.map(np.testing.assert_array_equal, model.params, result.state.params)


def test_a_configuration_of_a_file(result, run, config, tmp_path):
    file = tmp_path / "some.py"
    file.write_text(f"def get_config(arg=''):\n    return { ({**config, 'duration': '2 steps'})!r}\n")
    again = vj.train(str(file), run)  # which ended before: it is evaluated again
    assert again.report.metrics == pytest.approx(result.report.metrics)


def test_evaluate(result, run, images):
    from_disk = vj.evaluate(run)
    assert from_disk.metrics == pytest.approx(result.report.metrics)
    assert from_disk.checkpoint == str(run / "checkpoints" / "2")
    written = json.loads((run / "evaluation" / "results.json").read_text())
    assert written["checkpoint"] == from_disk.checkpoint and written["metrics"] == pytest.approx(from_disk.metrics)
    assert vj.evaluate(result).metrics == pytest.approx(result.report.metrics)
    other = vj.evaluate(result, changes={"data.val": f"folder:{images}"})
    assert other.metrics["examples"] == 24 and other.checkpoint == ""
    with pytest.raises(vj.UsageError, match="name the run's workdir"):
        vj.evaluate(result, checkpoint=run)


def test_the_three_things_of_a_model(model, images):
    module, params, preprocess = model
    files = [images / "ant" / "0.png", images / "bee" / "1.png"]
    batch = preprocess(files)
    assert batch.shape == (2, 8, 8, 3) and batch.dtype == np.float32
    arrays = [np.asarray(Image.open(f)) for f in files]
    np.testing.assert_array_equal(preprocess(np.stack(arrays)), batch)
    np.testing.assert_array_equal(preprocess(files[1].read_bytes()), batch[1])
    np.testing.assert_allclose(batch[0], arrays[0] / 127.5 - 1, atol=1e-6)
    logits = module.apply({"params": params}, batch)
    rows = vj.predict(model, files, top=1)
    want = jax.nn.softmax(logits).max(-1)
    np.testing.assert_allclose([r["predictions"][0]["probability"] for r in rows], want, rtol=1e-5)


def test_predict_takes_images_of_every_form(model, images, tmp_path):
    file = images / "cat" / "3.png"
    array = np.asarray(Image.open(file))
    (by_path,) = vj.predict(model, file)
    assert by_path["path"] == str(file)
    for i, given in enumerate((file.read_bytes(), array, array[None], [array], [file.read_bytes()])):
        (row,) = vj.predict(model, given)
        assert row == {"image": 0, "predictions": by_path["predictions"]}, i
    assert len(vj.predict(model, images / "cat", batch_size=3)) == 8
    (tmp_path / "torn.png").write_bytes(file.read_bytes()[:40])
    torn, good = vj.predict(model, [tmp_path / "torn.png", array])
    assert "unreadable" in torn["error"] and good == {"image": 1, "predictions": by_path["predictions"]}


def test_embed(model, images, tmp_path):
    found = vj.embed(model, images / "ant", batch_size=3)
    assert found.shape == (8, 16) and found.dtype == np.float32
    batch = model.preprocess([images / "ant" / "2.png"])
    features = model.model.apply({"params": model.params}, batch, method="features")
    np.testing.assert_allclose(found[2:3], features.pooled, rtol=1e-5, atol=1e-5)
    (tmp_path / "torn.png").write_bytes(b"x")
    with pytest.raises(vj.UserError, match=r"torn\.png .* \(1 of 9 images; leave them out\)"):
        vj.embed(model, [tmp_path / "torn.png", images / "ant"])
    with pytest.raises(vj.UsageError, match="nothing to embed"):
        vj.embed(model)
    with pytest.raises(vj.UserError, match="embeds no texts"):
        vj.embed(model, texts=["a cat"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"texts": ["a"], "captions": "greedy"}, "two questions"),
        ({"top": 0}, "top=0 is too small"),
        ({"batch_size": 0}, "batch_size=0 is too small"),
        ({"captions": "greedyy"}, "did you mean 'greedy'"),
        ({"texts": ["a"]}, "knows its own classes only"),
        ({"captions": "greedy"}, "writes no captions"),
    ],
)
def test_a_wrong_question(model, images, options, text):
    with pytest.raises(vj.UserError, match=text):
        vj.predict(model, images / "ant" / "0.png", **options)


def test_convert_from_memory_and_from_a_place(model, run, images, tmp_path):
    done = vj.convert(model, tmp_path / "w.safetensors", to="timm")
    assert done.summary == "vit, 3,155 parameters, 3 classes, 8 px" and done.ok and done.differences == ()
    again = vj.convert(run, tmp_path / "other.npz", to="npz", verify=False)
    assert again.target == tmp_path / "other.npz"
    for place in ("w.safetensors", "other.npz"):
        loaded = vj.load(tmp_path / place, "vit(heads=2)")
        assert loaded.class_names == model.class_names
        jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
    verified = vj.convert(model, tmp_path / "run", to="vit_jax", verify=True)
    assert [d.difference for d in verified.differences] == [0.0, 0.0, 0.0] and verified.ok


def test_export(model, tmp_path):
    written = vj.export(model, tmp_path / "out", to="stablehlo")
    assert written.folder == tmp_path / "out" and written.difference < 1e-5


def test_lists():
    assert vj.list_models("vit_b*") == ["vit_b8", "vit_b14", "vit_b16", "vit_b32"]
    assert "vit" not in vj.list_models() and len(vj.list_models()) == len(set(vj.list_models()))
    assert {row.model for row in vj.list_pretrained("*")} <= set(vj.list_models())


def test_open_source(images):
    source = vj.open_source(f"folder:{images}", holdout=0)
    assert len(source) == 24 and isinstance(source, vj.Source)
