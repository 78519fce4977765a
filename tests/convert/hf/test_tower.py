"""Image towers of transformers' CLIP and SigLIP, out of whole models and by themselves."""

import json

import numpy as np
import pytest
import safetensors.numpy

from vit_jax.convert import pretrained, read, verify, write
from vit_jax.convert.format import Format
from vit_jax.convert.hf import tower
from vit_jax.io.tensors import Tensor
from vit_jax.models import create, describe
from vit_jax.types import UserError

IMAGE = {"width": 32, "depth": 2, "heads": 4, "mlp_dim": 48, "patch": 8}
TEXT = {"width": 16, "depth": 1, "heads": 4, "mlp_dim": 20, "vocab_size": 31, "length": 8, "end_id": 30}
NAMES = {"clip": "clip_vit_b32", "siglip": "siglip_vit_b16"}


@pytest.fixture(params=NAMES)
def whole(request, rng, tmp_path):
    """A model of two towers as transformers has it, its tensors, and the settings beside them."""
    model = create(NAMES[request.param], image_tower=IMAGE, text_tower=TEXT, embed_dim=32)
    shapes = describe.shapes(model, 32)
    params = {k: Tensor.of(rng.normal(size=s, scale=0.3).astype(np.float32)) for k, s in shapes.items()}
    write.save(pretrained.Stored(model, params, pretrained.Preprocess(32)), tmp_path / "whole", "hf")
    tensors = safetensors.numpy.load_file(tmp_path / "whole" / "model.safetensors")
    return model, params, tensors, json.loads((tmp_path / "whole" / "config.json").read_text())


def put(folder, tensors, settings=None):
    folder.mkdir()
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder


def same(found, model, params):
    assert found.model == model.image_tower, found.notes
    wanted = {path.removeprefix("image_tower/"): x for path, x in params.items() if path.startswith("image_tower/")}
    assert found.params.keys() == wanted.keys()
    for name, tensor in found.params.items():
        np.testing.assert_array_equal(tensor.read(), wanted[name].read(), err_msg=name)


def test_a_tower_out_of_a_model_of_two(whole, tmp_path):
    model, params, tensors, settings = whole
    vision = {name: x for name, x in tensors.items() if name.startswith("vision_model.")}
    bare = {name.removeprefix("vision_model."): x for name, x in vision.items()}
    with read.load(put(tmp_path / "bare", bare, settings["vision_config"])) as found:
        same(found, model, params)
        assert not found.assumed and found.preprocess.size == 32
    projected = vision | {"visual_projection.weight": np.ones((32, 32), np.float32)}
    with read.load(put(tmp_path / "projected", projected, settings["vision_config"])) as found:
        same(found, model, params)
        assert "another tensor is left out (visual_projection.weight)" in found.notes
    wrapped = {f"model.vision_tower.{name}": x for name, x in vision.items()} | {"lm_head.weight": np.ones((3, 3))}
    with read.load(put(tmp_path / "wrapped", wrapped, {"model_type": "llava", **settings})) as found:
        same(found, model, params)
        assert "its weights are those under 'model.vision_tower.vision_model.'" in found.notes
    said = f"vit(heads=4, activation='{model.image_tower.activation}')"
    with read.load(put(tmp_path / "alone", bare), said) as found:
        same(found, model.clone(image_tower=model.image_tower.clone(norm_epsilon=found.model.norm_epsilon)), params)
        assert set(found.assumed) == {"norm_epsilon"}


def test_a_text_tower_is_none(whole, tmp_path):
    texts = {name: x for name, x in whole[2].items() if name.startswith("text_")}
    with pytest.raises(UserError, match="weights of a text tower alone"):
        read.load(put(tmp_path / "text", texts)).__enter__()


def test_a_processor_of_a_tower_is_asked(whole, transformers, tmp_path):
    """Pixels of a tower alone are those of its own processor, sides that patches do not divide included."""
    _, _, tensors, settings = whole
    siglip = settings["model_type"] == "siglip"
    image = {k.removeprefix("vision_model."): x for k, x in tensors.items() if k.startswith("vision_model.")}
    place = put(tmp_path / "alone", image, {**settings["vision_config"], "image_size": 35})
    size = {"height": 35, "width": 35} if siglip else {"shortest_edge": 35}
    kind = "Siglip" if siglip else "CLIP"
    content = {"image_processor_type": f"{kind}ImageProcessor", "size": size, "crop_size": 35}
    (place / "preprocessor_config.json").write_text(json.dumps(content))
    with read.load(place) as found:
        assert (found.preprocess.size, found.preprocess.frame.rest) == (32, 3)
        rows = verify.verify(found, [place])
    assert rows[0].output == "pixel" and all(row.ok for row in rows), rows


def test_none_is_written(whole):
    model, params, *_ = whole
    with pytest.raises(UserError, match="towers are read alone"):
        tower.write(pretrained.Stored(model.image_tower, params, pretrained.Preprocess(32), source="x"))
    assert Format("hf", "hf", "", "", (tower.CODEC,)).codec(model.image_tower) is None


@pytest.mark.parametrize(
    "name", ["CLIPVisionModel", "CLIPVisionModelWithProjection", "SiglipVisionModel", "Siglip2VisionModel"]
)
def test_transformers_own_towers(name, transformers, tmp_path):
    kind = getattr(transformers, name)
    grid = {"num_patches": 16} if name.startswith("Siglip2") else {"image_size": 32}
    config = kind.config_class(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, patch_size=8, **grid
    )
    module = kind(config)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.2)
    module.save_pretrained(tmp_path / "peer")
    with read.load(tmp_path / "peer") as found:
        assert all(row.ok for row in verify.verify(found, [tmp_path / "peer"])), found.notes
        (tmp_path / "peer" / "config.json").unlink()
    with read.load(tmp_path / "peer", "vit(heads=4)") as found:
        assert all(row.ok for row in verify.verify(found, [tmp_path / "peer"]))
