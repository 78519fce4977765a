"""Every format through files: out and in again bit for bit, with preprocessing and class names, and what is refused."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from tests.convert.small_models import MODELS, NAMES, PAIR, pretrained, target
from vit_jax import models
from vit_jax.convert import formats, read, write
from vit_jax.convert.pretrained import Preprocess, Stored
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer.clip import Clip
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe
from vit_jax.types import UserError

PAIRS = [
    *((m, "timm") for m in ("cls", "gap", "map", "registers", "headless", "hybrid")),
    *((m, "hf") for m in ("cls", "dinov2", "headless")),
    *((m, "npz") for m in ("cls", "gap", "tanh", "hybrid", "mixer")),
    *((m, "big_vision") for m in ("gap", "map", "tanh")),
    *((m, "vit_jax") for m in ("registers", "mixer", "topk", "monarch", "m2")),
]


@pytest.mark.parametrize(("name", "to"), PAIRS, ids=map("-".join, PAIRS))
def test_out_and_in_again(name, to, rng, tmp_path):
    there = pretrained(MODELS[name], rng)
    if "position/embedding" in there.params and to == "big_vision" and there.model.pool == "cls":
        there.params["position/embedding"].read()[:, 0] = 0  # this format has no position for the token
    path = target(tmp_path, to)
    write.save(there, path, to)
    with read.weights_of(path) as (fmt, _):
        assert fmt is formats.TARGETS[to]
    with read.load(path) as again:
        assert again.model == there.model, (again.model, again.notes)
        assert again.class_names == there.class_names and again.output_activation == there.output_activation
        for field in ("size", "interpolation", "mean", "std"):
            assert getattr(again.preprocess, field) == getattr(there.preprocess, field)
        assert again.preprocess.crop == pytest.approx(0.875, abs=0.02)
        assert again.params.keys() == there.params.keys()
        for key, tensor in there.params.items():
            np.testing.assert_array_equal(again.params[key].read(), tensor.read(), err_msg=key)
    assert sorted(p.name for p in tmp_path.iterdir()) == (["out.json", "out.npz"] if path.suffix else ["out"])


def test_a_tokenizer_beside_the_weights(rng, tmp_path, monkeypatch):
    there = pretrained(models.create("two_tower", **PAIR), rng)
    there = dataclasses.replace(there, encoder=TextCodec(Clip("t h\nth e</w>"), 8))
    there = dataclasses.replace(
        there, model=there.model.clone(text_tower=there.model.text_tower.clone(vocab_size=516, end_id=515))
    )
    params = {**there.params, "text_tower/token/embedding": Tensor.of(np.ones((516, 64), np.float32))}
    there = dataclasses.replace(there, params=params)
    with pytest.raises(UserError, match=r"merges.txt belongs beside these weights, and .*x.safetensors is one file"):
        write.save(there, tmp_path / "x.safetensors", "open_clip")
    assert not list(tmp_path.iterdir())
    write.save(there, tmp_path / "x", "open_clip")
    with read.load(tmp_path / "x") as again:
        assert again.encoder == there.encoder and again.model == there.model
    write.save(there, tmp_path / "run", "vit_jax")
    with read.load(tmp_path / "run") as again:
        assert again.encoder == there.encoder
    config = json.loads((tmp_path / "x/open_clip_config.json").read_text())
    own = json.loads((tmp_path / "x/tokenizer_config.json").read_text())
    own["vit_jax"]["length"] = 8
    (tmp_path / "x/merges.txt").write_text("#version: 0.2\nt h\nth e</w>\na t</w>\n")
    (tmp_path / "x/vocab.json").unlink()
    assert config["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
    with pytest.raises(UserError, match=r"the tokenizer of .*x has 517 tokens, its text tower knows 516"):
        read.load(tmp_path / "x").__enter__()


def test_one_file_instead_of_a_folder(rng, tmp_path):
    there = pretrained(MODELS["cls"], rng)
    write.save(there, tmp_path / "a.safetensors", "timm")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.safetensors"]
    assert safetensors.numpy.load_file(tmp_path / "a.safetensors")["head.bias"].shape == (3,)
    with read.load(tmp_path / "a.safetensors") as again:
        assert again.class_names == NAMES and again.model == there.model
    (tmp_path / "a.json").unlink()
    with read.load(tmp_path / "a.safetensors") as again:
        assert again.class_names == ("0", "1", "2")
        assert any("numbered" in note for note in again.notes) and any("heads" in note for note in again.notes)


def test_sources_that_are_nothing(rng, tmp_path):
    def fails(match, path, model=None):
        with pytest.raises(UserError, match=match), read.load(path, model):
            raise AssertionError

    (tmp_path / "empty").mkdir()
    fails("no checkpoint in .*empty", tmp_path / "empty")
    fails("gone", tmp_path / "gone")
    odd = tmp_path / "odd.safetensors"
    safetensors.numpy.save_file({"layer4.0.conv1.weight": np.ones(3, np.float32)}, odd)
    fails(r"holds 1 tensors \(layer4.0.conv1.weight, ...\) in no known format; known are timm", odd)
    there = pretrained(MODELS["cls"], rng)
    write.save(there, tmp_path / "good.safetensors", "timm")
    fails("unknown model 'vit_b61'; did you mean 'vit_b16'", tmp_path / "good.safetensors", "vit_b61")
    fails("--model mixer_b16 is a Mixer, but", tmp_path / "good.safetensors", "mixer_b16")
    fails(r"blocks.2.norm1.weight, .* are missing; .* --model", tmp_path / "good.safetensors", "vit_b16")
    fails(r"does not fit .* of the model.*--model", tmp_path / "good.safetensors", "vit(mlp_dim=95)")
    (tmp_path / "good.json").write_text("[1]")
    fails("holds a JSON list; expected an object", tmp_path / "good.safetensors")
    (tmp_path / "good.json").write_text("{")
    fails("is no JSON", tmp_path / "good.safetensors")
    (tmp_path / "good.json").write_text(json.dumps({"config.json": {"architecture": "x", "model_args": 3}}))
    fails("the JSON files beside .*good.safetensors do not describe a model of timm", tmp_path / "good.safetensors")
    fails("holds several weights; name one of them: good.safetensors, odd.safetensors", tmp_path)
    data = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(data[: len(data) // 2])
    fails("torn.safetensors", tmp_path / "torn.safetensors")
    write.save(there, tmp_path / "run", "vit_jax")
    fails("knows its own model", tmp_path / "run", "vit_b16")


@pytest.mark.slow
@pytest.mark.parametrize(("to", "times"), [("npz", 0.5), ("vit_jax", 2.5)])
def test_a_large_model_is_streamed(to, times, tmp_path):
    """ViT-L/16, 1.2 GB: the most memory that its conversion takes, the interpreter included, over its size."""
    model = models.create("vit_l16")
    rng = np.random.default_rng(0)

    def leaf(shape):
        return Tensor(shape, np.dtype(np.float32), lambda: rng.standard_normal(shape, np.float32))

    shapes = describe.shapes(model, 224)
    there = Stored(model, {path: leaf(shape) for path, shape in shapes.items()}, Preprocess(224))
    write.save(there, tmp_path / "source", "timm")
    size = 4 * sum(math.prod(shape) for shape in shapes.values())
    program = (
        "import resource, sys; from vit_jax.cli import main; status = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024); sys.exit(status)"
    )
    paths = [str(tmp_path / "source"), str(target(tmp_path, to))]
    done = subprocess.run(
        [sys.executable, "-c", program, "convert", *paths, "--to", to], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) <= times * size
