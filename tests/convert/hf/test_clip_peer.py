"""transformers' own CLIP from any file, and what is said where it refuses one."""

import json

import numpy as np
import pytest

from vit_jax import api
from vit_jax.convert import pretrained, read, verify, write
from vit_jax.convert.hf import clip_peer
from vit_jax.convert.hf.clip_rules import rules
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.rules import back
from vit_jax.io.tensors import Tensor, write_safetensors
from vit_jax.models import create, describe
from vit_jax.types import UserError

IMAGE = {"width": 20, "depth": 1, "heads": 2, "mlp_dim": 24, "patch": 7}
TEXT = {"width": 16, "depth": 1, "heads": 4, "mlp_dim": 20, "vocab_size": 31, "length": 8, "end_id": 30}


def written(folder, leave=(), alone=False):
    """Our model with random weights and the file that it becomes."""
    model = create("clip_vit_b32", image_tower=IMAGE, text_tower=TEXT, embed_dim=12)
    rng = np.random.default_rng(0)
    shapes = describe.shapes(model, 21)
    params = {
        k: Tensor.of((k.endswith("scale") + 0.3 * rng.normal(size=s)).astype(np.float32)) for k, s in shapes.items()
    }
    found = pretrained.Stored(model, params, Preprocess(21))
    if not (leave or alone):
        write.save(found, folder / "out", "hf")
        return found, folder / "out" / "model.safetensors"
    tensors = back(rules(model, "clip"), params, name="hf")
    write_safetensors(folder / "x.safetensors", {k: v for k, v in tensors.items() if k not in leave}, {"format": "pt"})
    return found, folder / "x.safetensors"


def gap(found, run):
    images, texts = np.random.default_rng(1).standard_normal((2, 21, 21, 3), np.float32), verify.texts(found, 3)
    ours = verify.outputs(found)(images, texts)
    theirs = run(images, texts)
    assert list(theirs) == ["image embedding", "text embedding", "logit"] and theirs["logit"].shape == (2, 3)
    return max(np.abs(theirs[name] - ours[name]).max() for name in ours)


def test_peer_is_ours_with_settings_and_without(transformers, tmp_path):
    found, path = written(tmp_path)
    assert gap(found, clip_peer.peer(path, found.model)) <= 2e-5
    path.with_name("config.json").unlink()
    assert gap(found, clip_peer.peer(path, found.model)) <= 2e-5


def test_siglip2_of_any_shape(transformers, torch, tmp_path):
    """NaFlex: transformers' own processor and model, on images of unlike shapes; out again bit for bit."""
    vision = dict(hidden_size=20, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_patches=9)
    text = dict(hidden_size=20, intermediate_size=28, num_hidden_layers=1, num_attention_heads=4, vocab_size=31)
    text |= {"max_position_embeddings": 8, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    kind = transformers.Siglip2Config
    module = transformers.Siglip2Model(kind(vision_config={**vision, "patch_size": 7}, text_config=text))
    torch.manual_seed(0)
    for name, x in module.named_parameters():
        x.data = torch.randn(x.shape) * 0.3 + ("norm" in name and name.endswith("weight"))
    module.save_pretrained(tmp_path / "there")
    images = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 7, "max_num_patches": 17, "resample": 2}
    (tmp_path / "there/preprocessor_config.json").write_text(json.dumps({**images, "max_num_patches": 16}))
    with read.load(tmp_path / "there") as found:
        assert (found.model.image_tower.position_grid, found.preprocess.size) == (3, 28)
        rows = verify.verify(found, [tmp_path / "there"])
        assert rows[0].output == "pixel" and all(row.ok for row in rows), rows
        write.save(found, tmp_path / "again", "hf")
        write.save(found, tmp_path / "ours", "vit_jax")
        for name in ("again", "ours"):
            with read.load(tmp_path / name) as other:
                assert (other.model, other.preprocess) == (found.model, found.preprocess)
                for path, tensor in found.params.items():
                    np.testing.assert_array_equal(other.params[path].read(), tensor.read(), err_msg=path)
        assert all(row.ok for row in verify.verify(found, [tmp_path / "again"]))
    (tmp_path / "there/preprocessor_config.json").write_text(json.dumps(images))
    with read.load(tmp_path / "there") as found:
        assert "images have at most 16 patches here, a square number, not 17" in found.notes
        loaded = found.read()
    shapes = ((50, 9), (7, 90), (21, 21))
    pixels = [np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    together = api.embed(loaded, pixels)
    for one, image in zip(together, pixels, strict=True):
        np.testing.assert_allclose(api.embed(loaded, image)[0], one, atol=1e-6)


def test_settings_beside_the_weights_win(transformers, tmp_path):
    found, path = written(tmp_path)
    settings = json.loads(path.with_name("config.json").read_text())
    settings["text_config"]["layer_norm_eps"] = 1.0
    path.with_name("config.json").write_text(json.dumps(settings))
    assert gap(found, clip_peer.peer(path, found.model)) > 0.01


def test_weights_that_do_not_fit_are_refused(transformers, tmp_path):
    found, path = written(tmp_path, leave=["text_model.final_layer_norm.bias"])
    with pytest.raises(UserError, match=r"finds no text_model\.final_layer_norm\.bias"):
        clip_peer.build(path, found.model)


def test_a_missing_package_is_a_sentence(tmp_path, monkeypatch):
    found, path = written(tmp_path, alone=True)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install '.*\[torch\]'"):
        clip_peer.build(path, found.model)
