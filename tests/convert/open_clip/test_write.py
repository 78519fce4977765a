"""Our models as open_clip's configurations: published ones come out as open_clip has them."""

import pytest

from vit_jax import models
from vit_jax.convert.open_clip.write import TRUNKS, write
from vit_jax.convert.preprocess import Preprocess
from vit_jax.types import UserError

UNSAID = ("hf_tokenizer_name", "tokenizer_kwargs", "attn_pooler_heads", "attentional_pool")
"""Of the tokenizer, or of no effect where it stands."""


def content(name, size=224, **fields):
    found, layout, notes = write(models.create(name, **fields), Preprocess(size), {})
    return found, layout, notes


@pytest.mark.parametrize(
    "name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-B-16-SigLIP", "coca_ViT-B-32", "coca_ViT-L-14"]
)
def test_published_models(name, open_clip):
    want = open_clip.get_model_config(name)
    found, _, notes = content(name)
    model = found["model_cfg"]
    defaults = {"mlp_ratio": 4.0, "head_width": 64, "attn_pooler_queries": 256, "timm_proj_bias": False}
    for part in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        own = {k: v for k, v in model.get(part, {}).items() if v != defaults.get(k) and k not in UNSAID}
        theirs = {k: v for k, v in want.get(part, {}).items() if k not in UNSAID}
        assert own == theirs, part
    rest = {k: v for k, v in model.items() if not k.endswith("_cfg") and k != "init_logit_scale"}
    assert rest == {k: v for k, v in want.items() if not k.endswith("_cfg")}
    assert ("vit_jax" in found) == bool(notes) == ("coca" in name)


def test_every_tower_of_timms_is_what_we_say(timm):
    for name, (size, fields) in TRUNKS.items():
        ours = models.create(**fields, num_classes=0)
        config = timm.get_pretrained_cfg(name)
        assert config is None or config.input_size[-1] == size, name
        import torch

        with torch.device("meta"):
            theirs = timm.create_model(name, num_classes=0)
        block = theirs.blocks[0]
        numbers = (theirs.patch_embed.patch_size[0], theirs.embed_dim, len(theirs.blocks), block.attn.num_heads)
        assert numbers == (ours.patch, ours.width, ours.depth, ours.heads), name
        assert block.mlp.fc1.out_features == ours.mlp_dim and theirs.patch_embed.img_size == (size, size), name
        act = block.mlp.act
        tanh = type(act).__name__ == "GELUTanh" or getattr(act, "approximate", "none") == "tanh"
        assert ("gelu_tanh" if tanh else "gelu") == ours.activation, name
        assert {"map": "map", "token": "cls"}[theirs.global_pool] == ours.pool
        assert block.norm1.eps == ours.norm_epsilon


def test_towers_of_timms():
    found, layout, _ = content("lit_vit_b16", image_head="biased")
    vision = found["model_cfg"]["vision_cfg"]
    assert vision["timm_model_name"] == "vit_base_patch16_224" and vision["timm_pool"] == "token"
    assert vision["timm_proj"] == "linear" and vision["timm_proj_bias"] and layout.trunk.prefix == 1
    found, *_ = content("siglip_vit_b16", 384, image_tower={"dropout": 0.1, "dtype": "bfloat16"})
    assert found["model_cfg"]["vision_cfg"]["timm_model_name"] == "vit_base_patch16_siglip_384"
    with pytest.raises(UserError, match="none of which is this one for 240 px"):
        content("siglip_vit_b16", 240)


def test_what_is_said_otherwise():
    model = models.create("clip_vit_b32", temperature=10.0)
    found, _, (note,) = write(model, Preprocess(224, 0.9, "bilinear", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)), {"pad_id": 3})
    assert "0.9 of the image" in note and found["model_cfg"]["text_cfg"]["pad_id"] == 3
    assert found["preprocess_cfg"] == {
        "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0], "interpolation": "bilinear", "resize_mode": "shortest",
    }  # fmt: skip
    assert found["model_cfg"]["init_logit_scale"] == pytest.approx(2.302585)
