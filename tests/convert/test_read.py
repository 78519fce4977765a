"""Every format through files: out and in again bit for bit, with preprocessing and class names, and what is refused."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.convert.small_models import MODELS, NAMES, PAIR, pretrained, target
from vit_jax import models
from vit_jax.convert import formats, read, write
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.data import imagenet
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer.clip import Clip
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe
from vit_jax.types import UserError

PAIRS = [
    *((m, "timm") for m in ("cls", "gap", "map", "fc_norm", "registers", "headless", "hybrid")),
    *((m, "hf") for m in ("cls", "dinov2", "headless")),
    *((m, "npz") for m in ("cls", "gap", "tanh", "hybrid", "mixer")),
    *((m, "big_vision") for m in ("gap", "map", "tanh")),
    *((m, "vit_jax") for m in ("registers", "fc_norm", "mixer", "topk", "monarch", "m2")),
]


@pytest.mark.first(10)
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
    near = {"dinov4_vit": "dinov3_vit", "vit_tinny_patch16_224": "vit_tiny_patch16_224"}
    for kind, words in near.items():
        odd.with_suffix(".json").write_text(json.dumps({"model_type": kind}))
        fails(rf"none of them has \(nearest that are read: {words}", odd)
    for key, kind in (("model_type", "dinov3_vit"), ("architecture", "resnet50")):
        odd.with_suffix(".json").write_text(json.dumps({key: kind}))
        fails(f"in no known format, of a model that its config.json calls '{kind}' and that none of them has", odd)
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


def wrapped(there, path, prefix, others=()):
    """Weights in timm's names behind ``prefix``, ``others`` beside them."""
    write.save(there, path.with_name("bare.safetensors"), "timm")
    tensors = {f"{prefix}{k}": v for k, v in safetensors.numpy.load_file(path.with_name("bare.safetensors")).items()}
    for name in others:
        tensors[name] = np.zeros(() if "." not in name else (2, 2), np.float32)
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("prefix", "others"),
    [("model.", ()), ("teacher.backbone.", ("student.x", "teacher.head.weight")), ("module.", ("n_averaged",)),
     ("state_dict.module.", ("best_acc1",)), ("net/encoder.", ("decode_head.conv.weight",))],
)  # fmt: skip
def test_weights_under_a_prefix(prefix, others, rng, tmp_path):
    there = pretrained(MODELS["registers"], rng)
    path = wrapped(there, tmp_path / "a.safetensors", prefix, others)
    with read.load(path, "vit(heads=2, layer_scale=0.1)") as found:
        assert found.model == there.model and f"its weights are those under {prefix!r}" in found.notes
        assert all(any(name in note for note in found.notes) for name in others[:1])
        for key, tensor in there.params.items():
            np.testing.assert_array_equal(found.params[key].read(), tensor.read())
    with read.weights_of(path) as (fmt, file):  # for the other project, by the names that it knows
        assert fmt.name == "timm" and "cls_token" in safetensors.numpy.load_file(file)
    assert not file.exists()


def test_one_model_in_chunks_as_dinov2_trains_it(rng, tmp_path):
    there = pretrained(MODELS["registers"], rng)
    write.save(there, tmp_path / "a.safetensors", "timm")
    arrays = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    rows, registers = arrays.pop("pos_embed"), arrays.pop("reg_token")
    assert rows.shape[1] == 20 and not rows[:, 1:4].any()
    arrays |= {"pos_embed": np.delete(rows, [1, 2, 3], 1), "register_tokens": registers, "mask_token": np.ones((1, 64))}
    chunked = {
        name.replace("blocks.", "blocks.0." if "blocks.0" in name else "blocks.1."): x for name, x in arrays.items()
    }
    safetensors.numpy.save_file({k: np.ascontiguousarray(x) for k, x in chunked.items()}, tmp_path / "b.safetensors")
    with read.load(tmp_path / "b.safetensors", "vit(heads=2, layer_scale=0.1)") as found:
        assert found.model == there.model, found.notes
        for key, tensor in there.params.items():
            np.testing.assert_array_equal(found.params[key].read(), tensor.read(), err_msg=key)
        assert "its 2 blocks lie in chunks of their own numbers" in found.notes
        assert any("mask_token is left out" in note for note in found.notes)


def test_rows_of_another_shape_of_image(rng, tmp_path):
    """A class token and 3 x 5 patches have as many rows as 4 x 4 patches alone."""
    there = pretrained(MODELS["cls"], rng)
    write.save(there, tmp_path / "a.safetensors", "timm")
    arrays, about = safetensors.numpy.load_file(tmp_path / "a.safetensors"), (tmp_path / "a.json").read_text()
    arrays["pos_embed"] = np.ones((1, 16, 64), np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / "b.safetensors")

    def fails(match):
        with pytest.raises(UserError, match=match), read.load(tmp_path / "b.safetensors"):
            raise AssertionError

    fails(
        r"the 16 rows of pos_embed may be those of 1 tokens and of 3 x 5 patches, or those of 4 x 4; put a config.json"
    )
    for where, size in (("model_args", {"img_size": [24, 40]}), ("pretrained_cfg", {"input_size": [3, 24, 40]})):
        config = json.loads(about)["config.json"]
        del config["model_args"]["img_size"], config["pretrained_cfg"]["input_size"]
        config[where] |= size
        (tmp_path / "b.json").write_text(json.dumps(config))
        fails("holds the positions of 3 x 5 patches; only square images are converted")
    config["model_args"]["no_embed_class"], config["pretrained_cfg"]["input_size"] = True, [3, 32, 32]
    (tmp_path / "b.json").write_text(json.dumps(config))
    with read.load(tmp_path / "b.safetensors") as found:
        assert found.preprocess.size == 32 and not found.params["position/embedding"].read()[:, 0].any()


def test_heads_that_no_file_tells(rng, tmp_path, caplog):
    there = pretrained(MODELS["cls"], rng)
    write.save(there, tmp_path / "a.safetensors", "timm")
    (tmp_path / "a.json").unlink()
    path, said = (
        tmp_path / "a.safetensors",
        "1 heads are assumed (one per 64 channels; no published model is 64 wide, 2 deep)",
    )
    with read.load(path) as found:
        assert found.model.heads == 1 and said in found.notes and found.assumed == {"heads": said}
        write.save(found, tmp_path / "run", "vit_jax")
    with read.load(path, "vit(heads=2)") as found:
        assert found.model.heads == 2 and not any("heads" in note for note in found.notes) and not found.assumed
        right = found.params["encoder/block_0/attention/qkv/kernel"].read()
    for like in ({"heads": 2, "width": 64}, {"image_tower": {"heads": 2}}):
        with read.load(path, like=like) as found:
            assert found.model.heads == 2 and "heads=2 as of the model, as the weights do not tell" in found.notes
            np.testing.assert_array_equal(found.params["encoder/block_0/attention/qkv/kernel"].read(), right)
    with read.load(tmp_path / "run") as found:  # which does not forget it
        assert found.assumed == {"heads": said} and found.notes == (said,)
    vit_jax.predict(str(path), np.zeros((32, 32, 3), np.uint8))
    vit_jax.embed(str(tmp_path / "run"), np.zeros((32, 32, 3), np.uint8))
    assert [said in record.getMessage() for record in caplog.records] == [True, True]
    done = vit_jax.convert(str(path), tmp_path / "again", to="vit_jax")
    assert said in done.notes and not any("share" in note for note in done.notes)
    done = vit_jax.convert(str(tmp_path / "run"), tmp_path / "more", to="vit_jax", verify=True)
    assert (
        done.ok and "the models compared share what is assumed (heads): their agreement does not prove it" in done.notes
    )


def test_a_published_size_is_a_guess_too(rng, tmp_path):
    there = pretrained(models.create("vit_ti16", depth=12, num_classes=2, heads=12), rng)
    write.save(there, tmp_path / "a.safetensors", "timm")
    with read.load(tmp_path / "a.safetensors") as found:
        assert found.model.heads == 12 and not found.assumed
    about = json.loads((tmp_path / "a.json").read_text())
    about["config.json"]["architecture"] = "vit_tiny_patch16_224"
    del about["config.json"]["model_args"]["num_heads"]
    (tmp_path / "a.json").write_text(json.dumps(about))
    with read.load(tmp_path / "a.safetensors") as found:  # what its architecture's name says
        assert found.model.heads == 3 and not found.assumed
    (tmp_path / "a.json").unlink()
    with read.load(tmp_path / "a.safetensors") as found:
        assert found.assumed == {"heads": "3 heads are assumed, as in published models of this size"}


@pytest.mark.parametrize(
    ("images", "words"),
    [({"crop_pct": 1e-9}, "crops images to 1e-09"), ({"std": [0, 0.2, 0.2]}, "above 0"),
     ({"std": [1e400, 1, 1]}, "finite"), ({"mean": [math.nan, 0, 0]}, "finite")],
)  # fmt: skip
def test_images_that_nobody_can_prepare(images, words, rng, tmp_path):
    write.save(pretrained(MODELS["cls"], rng), tmp_path / "a.safetensors", "timm")
    about = json.loads((tmp_path / "a.json").read_text())
    about["config.json"]["pretrained_cfg"] |= images
    (tmp_path / "a.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=words):
        vit_jax.convert(tmp_path / "a.safetensors", tmp_path / "out", to="vit_jax")
    assert not (tmp_path / "out").exists()


def test_what_gives_access_is_written_nowhere(rng, tmp_path, monkeypatch):
    write.save(pretrained(MODELS["cls"], rng), tmp_path / "a.safetensors", "timm")
    monkeypatch.setattr(read, "fetch", lambda source: tmp_path / "a.safetensors")
    address = "https://me:secret@host/a.safetensors?token=secret"
    done = vit_jax.convert(address, tmp_path / "run", to="vit_jax")
    with read.load(address) as found:
        assert found.source == "https://host/a.safetensors"
        assert "secret" not in "".join(found.notes + done.notes)
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(b"host/a.safetensors" in text for text in written) and not any(b"secret" in text for text in written)


def test_a_download_that_is_of_no_use(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = tmp_path / "vit_jax" / "downloads" / "0"
    kept.mkdir(parents=True)
    safetensors.numpy.save_file({"x": np.ones(3, np.float32)}, kept / "a.safetensors")
    for content, words in ((None, "in no known format"), (b"{", "cannot be read")):
        if content:
            (kept / "a.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=rf"{words}.* \(VIT_JAX_REFRESH=1 fetches it again\)\.$"):
            read.load(kept / "a.safetensors").__enter__()


@pytest.mark.parametrize(
    ("tag", "architecture", "classes", "told"),
    [
        ("augreg_in21k_ft_in1k", "", 1000, True),
        (None, ".fb_in1k", 1000, True),
        ("augreg_in21k", "", 1000, False),  # a thousand classes alone say nothing
        (None, "", 1000, False),
        ("fb_in1k", "", 999, False),
    ],
)
def test_classes_of_imagenet_are_named_where_the_description_says_so(tag, architecture, classes, told, rng, tmp_path):
    tiny = models.create("vit", patch=4, width=8, depth=1, heads=2, mlp_dim=8, num_classes=classes)
    write.save(dataclasses.replace(pretrained(tiny, rng), class_names=()), tmp_path / "out", "timm")
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    about["architecture"] += architecture
    about["pretrained_cfg"]["tag"] = tag
    (tmp_path / "out" / "config.json").write_text(json.dumps(about))
    with read.load(tmp_path / "out") as found:
        names = tuple(imagenet.classes().values()) if told else tuple(map(str, range(classes)))
        assert found.class_names == names
        (note,) = (note for note in found.notes if "classes are" in note)
        assert note.startswith(
            f"its {classes} classes are named as ImageNet-1k's" if told else f"its {classes} classes are nu"
        )
    about["label_names"] = [f"c{i}" for i in range(classes)]
    (tmp_path / "out" / "config.json").write_text(json.dumps(about))
    with read.load(tmp_path / "out") as found:
        assert found.class_names == tuple(about["label_names"])


def test_a_tag_of_ours_names_the_classes():
    assert read._said_imagenet({}, "vit_ti16.augreg_in21k_ft_in1k") == "the tag 'augreg_in21k_ft_in1k'"
    assert read._said_imagenet({}, "hf://timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k") != ""
    assert read._said_imagenet({}, "vit_b16.augreg_in21k") == read._said_imagenet({}, "in1k.npz") == ""
