"""Every format through files: out and in again bit for bit, with preprocessing and class names, and what is refused."""

import contextlib
import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from vit_jax import models
from vit_jax.convert import base, store
from vit_jax.convert.base import Preprocess, Stored
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer.clip import Clip
from vit_jax.io.tensors import Tensor
from vit_jax.types import UsageError, UserError

NAMES = ("ant", "bee", "cat")
PREPROCESS = Preprocess(32, 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIZE = {"width": 64, "depth": 2, "heads": 2, "mlp_dim": 96, "patch": 8, "num_classes": 3}
MODELS = {
    "cls": models.create("vit", **SIZE),
    "gap": models.create("vit", **SIZE, pool="gap"),
    "map": models.create("vit", **SIZE, pool="map"),
    "tanh": models.create("vit", **SIZE, pre_logits=24, activation="gelu_tanh"),
    "registers": models.create("vit", **SIZE, registers=3, layer_scale=0.1),
    "dinov2": models.create("vit", **SIZE | {"mlp_dim": 256}, registers=4, layer_scale=0.1, pool="cls_gap"),
    "headless": models.create("vit", **SIZE | {"num_classes": 0}),
    "hybrid": models.create("vit", **SIZE | {"patch": 1}, stem=(2, 2, 2, 2), stem_numerics="timm"),
    "topk": models.create("vit", **SIZE, activation="topk(5)"),
    "monarch": models.create("vit", **SIZE, mlp_linear="monarch(2)", qkv_linear="sparse24"),
    "m2": models.create("monarch_mixer", width=64, depth=1, mlp_dim=128, patch=8, num_classes=3),
    "mixer": models.create("mixer", width=64, depth=2, token_dim=32, mlp_dim=256, patch=8, num_classes=3),
}
FOREIGN = ("timm", "hf", "npz", "big_vision", "open_clip")
PAIR = {
    "image_tower": {"name": "vit", **SIZE, "num_classes": 0, "patch_bias": False},
    "text_tower": {"vocab_size": 259, "length": 8, "end_id": 2, "width": 64, "depth": 1, "heads": 2, "mlp_dim": 96},
    "embed_dim": 24,
}
PAIRS = [
    *((m, "timm") for m in ("cls", "gap", "map", "registers", "headless", "hybrid")),
    *((m, "hf") for m in ("cls", "dinov2", "headless")),
    *((m, "npz") for m in ("cls", "gap", "tanh", "hybrid", "mixer")),
    *((m, "big_vision") for m in ("gap", "map", "tanh")),
    *((m, "vit_jax") for m in ("registers", "mixer", "topk", "monarch", "m2")),
]


def pretrained(model, rng):
    shapes = base.shapes(model, 32)
    params = {p: Tensor.of(rng.normal(size=s, scale=0.3).astype(np.float32)) for p, s in shapes.items()}
    names = NAMES[: base.classes(model)]
    return Stored(model, params, PREPROCESS, names, resize="bicubic", source="memory")


def target(tmp_path, to):
    return tmp_path / ("out.npz" if to in ("npz", "big_vision") else "out")


@pytest.mark.parametrize(("name", "to"), PAIRS, ids=map("-".join, PAIRS))
def test_out_and_in_again(name, to, rng, tmp_path):
    there = pretrained(MODELS[name], rng)
    if "position/embedding" in there.params and to == "big_vision" and there.model.pool == "cls":
        there.params["position/embedding"].read()[:, 0] = 0  # this format has no position for the token
    path = target(tmp_path, to)
    store.save(there, path, to)
    assert store.format_of(path)[0] is store.TARGETS[to]
    with store.load(path) as again:
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
        store.save(there, tmp_path / "x.safetensors", "open_clip")
    assert not list(tmp_path.iterdir())
    store.save(there, tmp_path / "x", "open_clip")
    with store.load(tmp_path / "x") as again:
        assert again.encoder == there.encoder and again.model == there.model
    store.save(there, tmp_path / "run", "vit_jax")
    with store.load(tmp_path / "run") as again:
        assert again.encoder == there.encoder
    config = json.loads((tmp_path / "x/open_clip_config.json").read_text())
    own = json.loads((tmp_path / "x/tokenizer_config.json").read_text())
    own["vit_jax"]["length"] = 8
    (tmp_path / "x/merges.txt").write_text("#version: 0.2\nt h\nth e</w>\na t</w>\n")
    (tmp_path / "x/vocab.json").unlink()
    assert config["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
    with pytest.raises(UserError, match=r"the tokenizer of .*x has 517 tokens, its text tower knows 516"):
        store.load(tmp_path / "x").__enter__()


def test_one_file_instead_of_a_folder(rng, tmp_path):
    there = pretrained(MODELS["cls"], rng)
    store.save(there, tmp_path / "a.safetensors", "timm")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.safetensors"]
    assert safetensors.numpy.load_file(tmp_path / "a.safetensors")["head.bias"].shape == (3,)
    with store.load(tmp_path / "a.safetensors") as again:
        assert again.class_names == NAMES and again.model == there.model
    (tmp_path / "a.json").unlink()
    with store.load(tmp_path / "a.safetensors") as again:
        assert again.class_names == ("0", "1", "2")
        assert any("numbered" in note for note in again.notes) and any("heads" in note for note in again.notes)


@pytest.mark.parametrize(
    ("name", "to", "words"),
    [
        ("mixer", "hf", "Mixer"),
        ("tanh", "timm", "pre_logits"),
        ("registers", "npz", "register"),
        ("map", "npz", "big_vision"),
        ("dinov2", "timm", "cls_gap"),
        *(("topk", to, "no activation='topk\\(5\\)'; write --to vit_jax") for to in FOREIGN),
        *(("m2", to, "no Monarch Mixers; write --to vit_jax") for to in FOREIGN),
        *(("monarch", to, "has dense maps alone, not qkv_linear='sparse24.*add --linear dense") for to in FOREIGN[:4]),
        ("cls", "tim", "unknown format 'tim'; did you mean 'timm'?"),
    ],
)
def test_what_a_format_cannot_say(name, to, words, rng, tmp_path):
    with pytest.raises(UserError, match=words):
        store.save(pretrained(MODELS[name], rng), target(tmp_path, to), to)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(rng, tmp_path):
    there = pretrained(MODELS["cls"], rng)
    for place, to in (("folder", "timm"), ("a.npz", "npz"), ("run", "vit_jax")):
        path = tmp_path / place
        path.write_text("mine") if path.suffix else path.mkdir()
        with pytest.raises(UserError, match="exists and is not overwritten"):
            store.save(there, path, to)
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(UserError, match=r"b\.json exists"):
        store.save(there, tmp_path / "b.npz", "npz")
    assert (tmp_path / "a.npz").read_text() == "mine" and not list((tmp_path / "folder").iterdir())
    for place, to, form in (
        ("x.pth", "timm", "a folder or a file ending in .safetensors"), ("x", "npz", "a file ending in .npz"),
        ("x.npz", "vit_jax", "a folder"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"is no place for {to}; name {form}"):
            store.save(there, tmp_path / place, to)


@pytest.mark.parametrize("to", list(store.TARGETS))
def test_nan_leaves_nothing_behind(to, rng, tmp_path):
    if to == "open_clip":
        there = pretrained(models.create("two_tower", **PAIR), rng)
        there.params["text_tower/encoder/block_0/mlp/mlp_out/kernel"].read()[3, 4] = np.nan
    else:
        there = pretrained(MODELS["tanh" if to == "big_vision" else "cls"], rng)
        there.params["encoder/block_1/mlp/mlp_out/kernel"].read()[3, 4] = np.nan
    if to == "vit_jax":  # ours is checked where weights come in
        store.save(pretrained(MODELS["cls"], rng), tmp_path / "in.safetensors", "timm")
        arrays = safetensors.numpy.load_file(tmp_path / "in.safetensors")
        arrays["blocks.1.mlp.fc2.weight"][4, 3] = np.nan
        safetensors.numpy.save_file(arrays, tmp_path / "in.safetensors")
    stack = contextlib.ExitStack()
    if to == "vit_jax":
        there = stack.enter_context(store.load(tmp_path / "in.safetensors"))
    before = sorted(tmp_path.iterdir())
    with stack, pytest.raises(UserError, match="holds NaN or infinity in 1 of"):
        store.save(there, target(tmp_path, to), to)
    assert sorted(tmp_path.iterdir()) == before


def test_sources_that_are_nothing(rng, tmp_path):
    def fails(match, path, model=None):
        with pytest.raises(UserError, match=match), store.load(path, model):
            raise AssertionError

    (tmp_path / "empty").mkdir()
    fails("no checkpoint in .*empty", tmp_path / "empty")
    fails("gone", tmp_path / "gone")
    odd = tmp_path / "odd.safetensors"
    safetensors.numpy.save_file({"layer4.0.conv1.weight": np.ones(3, np.float32)}, odd)
    fails(r"holds 1 tensors \(layer4.0.conv1.weight, ...\) in no known format; known are timm", odd)
    there = pretrained(MODELS["cls"], rng)
    store.save(there, tmp_path / "good.safetensors", "timm")
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
    store.save(there, tmp_path / "run", "vit_jax")
    fails("knows its own model", tmp_path / "run", "vit_b16")


@pytest.mark.slow
@pytest.mark.parametrize(("to", "times"), [("npz", 0.5), ("vit_jax", 2.5)])
def test_a_large_model_is_streamed(to, times, tmp_path):
    """ViT-L/16, 1.2 GB: the most memory that its conversion takes, the interpreter included, over its size."""
    model = models.create("vit_l16")
    rng = np.random.default_rng(0)

    def leaf(shape):
        return Tensor(shape, np.dtype(np.float32), lambda: rng.standard_normal(shape, np.float32))

    shapes = base.shapes(model, 224)
    there = Stored(model, {path: leaf(shape) for path, shape in shapes.items()}, Preprocess(224))
    store.save(there, tmp_path / "source", "timm")
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
