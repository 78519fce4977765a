"""open_clip's models through files: its own outputs, bit-exact both ways, and what is refused."""

import json

import numpy as np
import pytest
import safetensors.numpy

from tests.convert import open_clip_models, torch_reference
from tests.convert.cases import rest_slow
from tests.convert.open_clip_models import CONFIGS, TRUNK, TRUNK_FIELDS
from vit_jax import models
from vit_jax.cli import main
from vit_jax.convert import read, verify, write
from vit_jax.convert.open_clip.write import TRUNKS
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer import open_tokenizer
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe
from vit_jax.types import UsageError, UserError

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


@pytest.fixture(scope="module")
def folder(open_clip, timm, torch, tmp_path_factory):
    """Name of a configuration -> a folder that open_clip saved, made once."""
    open_clip_models.register(timm)
    root, made = tmp_path_factory.mktemp("open_clip"), {}

    def get(name):
        if name not in made:
            made[name] = open_clip_models.save(open_clip, torch, CONFIGS[name], root / name)
        return made[name]

    return get


@pytest.fixture(autouse=True)
def tiny_trunk(monkeypatch):
    monkeypatch.setitem(TRUNKS, TRUNK, (16, TRUNK_FIELDS))


@pytest.mark.parametrize("name", rest_slow(CONFIGS, "clip", "siglip", "coca"))
def test_outputs_and_files_are_open_clips(name, folder, tmp_path):
    there, again = folder(name), tmp_path / "again"
    with read.load(there, "two_tower(image_tower={'heads': 2})" if name in ("siglip", "trunk") else None) as found:
        assert found.preprocess == Preprocess(16, 1.0, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        write.save(found, again, "open_clip")
        rows = verify.verify(found, [there, again])
        outputs = [
            "logit",
            "image embedding",
            "text embedding",
            "pixel",
            *["caption logit"] * isinstance(found.model, models.CoCa),
        ]
        assert {row.output for row in rows} == set(outputs) and len(rows) == 4 * (len(outputs) - 1) + 2
        assert all(row.ok and row.largest > 0.2 for row in rows), rows
        with read.load(again) as back:
            assert back.model == found.model and back.preprocess == found.preprocess
            for path, tensor in found.params.items():
                np.testing.assert_array_equal(back.params[path].read(), tensor.read(), err_msg=path)
    was, now = (safetensors.numpy.load_file(place / WEIGHTS) for place in (there, again))
    renamed = {n.replace("visual.trunk.head.", "visual.head.proj."): x for n, x in was.items()}
    assert renamed.keys() == now.keys()
    assert all(np.array_equal(renamed[n], x) for n, x in now.items())


def test_a_wrong_weight_is_seen(folder, tmp_path):
    arrays = safetensors.numpy.load_file(folder("coca") / WEIGHTS)
    content = json.loads((folder("coca") / CONFIG).read_text())
    with read.load(folder("coca")) as found:
        for i, name in enumerate(
            ("visual.attn_pool.attn.k_proj_weight", "text_decoder.cross_attn.1.attn.in_proj_weight")
        ):
            place = tmp_path / str(i)
            place.mkdir()
            (place / CONFIG).write_text(json.dumps(content))
            safetensors.numpy.save_file({**arrays, name: np.roll(arrays[name], 1, 0)}, place / WEIGHTS)
            rows = {(r.images, r.output): r.ok for r in verify.compare(found, place)}
            assert rows["noise", "caption logit"] is False and rows["noise", "text embedding"] is True
            assert rows["noise", "image embedding"] is bool(i)


def ours(name, rng, **fields):
    """A random model of ours and the tokenizer of bytes."""
    image = {"name": "vit", "num_classes": 0, "patch": 8, "width": 48, "depth": 1, "heads": 3, "mlp_dim": 100}
    image |= {"patch_bias": False, "norm_epsilon": 1e-5}
    text = {"vocab_size": 259, "length": 9, "end_id": 2, "width": 32, "depth": 1, "heads": 2, "mlp_dim": 70}
    text |= {"norm_epsilon": 1e-5, **fields.pop("text_tower", {})}
    image |= fields.pop("image_tower", {})
    model = models.create(name, image_tower=image, text_tower=text, **{"embed_dim": 32} | fields)
    params = open_clip_models.random_tensors(describe.shapes(model, 16))
    encoder = TextCodec(open_tokenizer("bytes"), 9)
    preprocess = Preprocess(16, 1.0, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    return Stored(model, {p: Tensor.of(x) for p, x in params.items()}, preprocess, encoder=encoder)


MADE = {
    "clip": ("two_tower", {}),
    "bias": ("two_tower", {"bias": -3.5, "temperature": 10.0, "text_tower": {"causal": False, "pool": "first"}}),
    "headless": ("two_tower", {"text_head": "none", "image_tower": {"pre_norm": True, "layer_scale": 0.3}}),
    "cls": ("two_tower", {"text_tower": {"pool": "cls"}}),
    "coca": (
        "coca",
        {
            "image_tower": {"final_norm": False},
            "text_tower": {"pool": "cls"},
            "decoder": {"depth": 1, "heads": 4, "mlp_dim": 128, "norm_epsilon": 1e-5},
            "queries": 5,
            "pool_heads": 4,
        },
    ),
}


@pytest.mark.parametrize("name", rest_slow(MADE, "cls", "coca"))
def test_models_of_ours(name, rng, open_clip, tmp_path):
    kind, fields = MADE[name]
    there = ours(kind, rng, **fields)
    notes = write.save(there, tmp_path / "out", "open_clip")
    assert any("correct_cls_mask" in note for note in notes) == (name in ("cls", "coca"))
    rows = verify.verify(there, [tmp_path / "out"])
    assert all(row.ok and row.largest > 0.05 for row in rows), rows
    with read.load(tmp_path / "out") as back:
        assert back.model == there.model and back.encoder == there.encoder
        assert back.preprocess == there.preprocess
        for path, tensor in there.params.items():
            np.testing.assert_array_equal(back.params[path].read(), tensor.read(), err_msg=path)


def test_what_is_written_computes_what_open_clip_computes(rng, tmp_path):
    """As open_clip's code does, without open_clip."""
    there = ours("two_tower", rng, image_tower={"layer_scale": 0.3, "pre_norm": True})
    write.save(there, tmp_path / "out", "open_clip")
    weights = {n: x.astype(np.float64) for n, x in safetensors.numpy.load_file(tmp_path / "out" / WEIGHTS).items()}
    images, texts = verify.noise(there.preprocess), verify.texts(there, 4)
    want = torch_reference.open_clip_pair(images, texts, weights, there.model.image_tower, there.model.text_tower)
    found = verify.outputs(there)(images, texts)
    for a, name in zip(want, ("image embedding", "text embedding", "logit"), strict=True):
        assert np.ptp(a) > 0.05
        np.testing.assert_allclose(found[name], a, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_the_command(folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["convert", str(folder("coca")), str(run), "--to", "vit_jax", "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "coca, " in printed and "texts of 7 tokens, 16 px" in printed and "read as open_clip" in printed
    assert printed.count("max |Δcaption logit|") == 4 and printed.count("max |Δtext embedding|") == 4
    assert main(["convert", str(run), str(tmp_path / "one.safetensors"), "--to", "open_clip"]) == 0
    was, now = (safetensors.numpy.load_file(p) for p in (folder("coca") / WEIGHTS, tmp_path / "one.safetensors"))
    assert was.keys() == now.keys() and all(np.array_equal(was[n], now[n]) for n in was)
    with read.load(tmp_path / "one.safetensors") as found, read.load(run) as native:
        assert found.model == native.model and native.config["objective"] == {"name": "coca"}


def test_without_a_configuration(folder, tmp_path):
    arrays = safetensors.numpy.load_file(folder("quick") / WEIGHTS)
    halves = {n: x.astype(np.float16) for n, x in arrays.items()}
    extra = {"context_length": np.array(7), "attn_mask": np.zeros((7, 7), np.float32)}  # as in older files
    safetensors.numpy.save_file(halves, tmp_path / "bare.safetensors")
    safetensors.numpy.save_file(halves | extra, tmp_path / "old.safetensors")
    quick = "two_tower(image_tower={'activation': 'quick_gelu'}, text_tower={'activation': 'quick_gelu', 'heads': 4})"
    with read.load(tmp_path / "bare.safetensors", quick) as found, read.load(folder("quick")) as want:
        assert found.model == want.model
        assert any("gelu, norm epsilon 1e-05, heads 64 wide" in note for note in found.notes)
        assert any("float16 there, float32 here" in note for note in found.notes)
        rows = verify.verify(found, [tmp_path / "bare.safetensors"])
        assert all(row.ok for row in rows), rows
    with read.load(tmp_path / "old.safetensors") as found:
        assert found.model.text_tower.heads == 1 and found.model.image_tower.activation == "gelu"
        assert any("context_length is left out" in note for note in found.notes)


def test_a_state_dictionary_of_a_training_run(folder, torch, tmp_path):
    arrays = safetensors.numpy.load_file(folder("clip") / WEIGHTS)
    state = {f"module.{name}": torch.from_numpy(x) for name, x in arrays.items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch_3.pt")
    (tmp_path / CONFIG).write_text((folder("clip") / CONFIG).read_text())
    with read.load(tmp_path / "epoch_3.pt") as found, read.load(folder("clip")) as want:
        assert found.model == want.model
        rows = verify.verify(found, [tmp_path / "epoch_3.pt"])
        assert all(row.ok for row in rows), rows


def test_damaged_files(folder, tmp_path):
    arrays = safetensors.numpy.load_file(folder("coca") / WEIGHTS)
    text = (folder("coca") / CONFIG).read_text()

    def fails(match, tensors, model=None, config=text):
        (tmp_path / CONFIG).write_text(config)
        safetensors.numpy.save_file(tensors, tmp_path / WEIGHTS)
        with pytest.raises(UserError, match=match), read.load(tmp_path, model) as found:
            found.tree()

    def without(*starts):
        return {n: x for n, x in arrays.items() if not n.startswith(starts)}

    fails(
        "a captioner .CoCa. by halves cannot be expressed here .there is a visual.attn_pool but",
        without("text_decoder"),
    )
    fails("there is a text_decoder but no visual.attn_pool", without("visual.attn_pool"))
    fails("text.ln_final.bias is missing", without("text.ln_final.bias"))
    fails("the weights lack text.token_embedding.weight|lack token_embedding.weight", without("text.token_embedding"))
    fails("the weights lack visual.conv1.weight, which tells the size", without("visual.conv1"))
    fails("logit_scale is missing", without("logit_scale"))
    fails("text.more is left over", arrays | {"text.more": np.ones(3, np.float32)})
    fails(
        "visual.conv1.weight has the shape .128, 64., expected 4 axes",
        arrays | {"visual.conv1.weight": np.ones((128, 64), np.float32)},
    )
    fails(
        "visual.positional_embedding holds 5 positions",
        arrays | {"visual.positional_embedding": np.ones((6, 128), np.float32)},
    )
    fails("logit_scale holds NaN or infinity in 1 of 1", arrays | {"logit_scale": np.array(np.nan, np.float32)})
    fails("does not fit .* of the model.*--model", arrays | {"text.positional_embedding": np.ones((8, 32), np.float32)})
    odd = json.dumps({"model_cfg": {"vision_cfg": 3, "text_cfg": 4}})
    fails("do not describe a model of open_clip", arrays, config=odd)
    with pytest.raises(UsageError, match="--model clip_vit_b32 is a TwoTower, but the weights are of a CoCa"):
        read.load(folder("coca"), "clip_vit_b32").__enter__()


def test_images_alone_are_refused(rng, tmp_path):
    model = models.create("vit", width=32, depth=1, heads=2, mlp_dim=32, num_classes=2)
    with pytest.raises(UserError, match="open_clip has no ViT by itself; write --to timm"):
        write.save(Stored(model, {}, Preprocess(32)), tmp_path / "x", "open_clip")
    with pytest.raises(UserError, match="timm has no TwoTower; write --to open_clip"):
        write.save(ours("two_tower", rng), tmp_path / "x", "timm")


def test_what_open_clip_has_not(rng, tmp_path):
    def fails(match, name="clip", **fields):
        kind, own = MADE[name]
        merged = {**own, **{k: own.get(k, {}) | v if isinstance(v, dict) else v for k, v in fields.items()}}
        with pytest.raises(UserError, match=match):
            write.save(ours(kind, rng, **merged), tmp_path / "x", "open_clip")
        assert not list(tmp_path.iterdir())

    fails("no text tower with pool='map'", text_tower={"pool": "map"})
    fails("no such image tower: .* for 16 px", image_tower={"patch_bias": True})
    fails("no such image tower", image_tower={"registers": 2})
    fails("no such image tower", image_head="biased")
    fails("quick_gelu all or none", text_tower={"activation": "quick_gelu"})
    fails("no activation='relu'", text_tower={"activation": "relu"})
    fails("no captioner with pooling='cascade'", "coca", pooling="cascade")
    fails("no captioner with text_tower.pool='end'", "coca", text_tower={"pool": "end"})
    fails("no caption decoder with mlp_dim=96", "coca", decoder={"mlp_dim": 96})
    fails("no caption decoder with one MLP a block", "coca", decoder={"split": False})
    fails("caption decoders have no gelu_tanh", "coca", decoder={"activation": "gelu_tanh"})
    fails("no captioner whose embedding .16. is not as wide as its texts .32.", "coca", embed_dim=16)
    fails("no captioner but on a ViT with patch_bias=False", "coca", image_tower={"norm_epsilon": 1e-6})


FULL = {
    "clip_vit_b32": {},
    "clip_vit_b32 quick_gelu": {
        "image_tower": {"activation": "quick_gelu"},
        "text_tower": {"activation": "quick_gelu"},
    },
    "siglip_vit_b16": {},
    "coca_vit_b32": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_size(name, open_clip, timm, tmp_path, capsys):
    model = models.create(name.split()[0], **FULL[name])
    params = open_clip_models.random_tensors(describe.shapes(model, 224))
    for path, x in params.items():
        if path.endswith("kernel") and x.ndim >= 2:
            params[path] = x * np.float32(np.prod(x.shape[:-1]) ** -0.5 / 0.3)
        elif path.endswith("/scale"):
            params[path] = 1 + x
    params["logit_scale"] = np.array(3.0, np.float32)
    there = Stored(model, {p: Tensor.of(x) for p, x in params.items()}, Preprocess(224, 1.0, "bicubic"))
    write.save(there, tmp_path / "out", "open_clip")
    rows = verify.verify(there, [tmp_path / "out"])
    with capsys.disabled():
        for row in rows:
            print(f"\n{name}: {row.images}, {row.output}: {row.difference:.2e}, largest {row.largest:.3g}", end="")
    assert all(row.ok and row.largest > 0.05 for row in rows)
    with read.load(tmp_path / "out") as back:
        assert open_clip_models.alike(back.model, model)
        assert all(np.array_equal(back.params[p].read(), x) for p, x in params.items())
