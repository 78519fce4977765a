"""transformers' own CLIP from any file, and what is said where it refuses one."""

import json

import numpy as np
import pytest

from vit_jax.convert import pretrained, verify, write
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
