"""What open_clip's configuration says, from names and shapes alone: no number is read."""

import math

import pytest

from tests.convert.golden_trees import golden, unread
from tests.convert.open_clip_models import alike, changed
from vit_jax import models
from vit_jax.convert.open_clip.config import FILE, Config, preprocess, read
from vit_jax.convert.preprocess import Preprocess
from vit_jax.models import describe
from vit_jax.types import UserError

B32 = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
SIGLIP = {
    "embed_dim": 768,
    "init_logit_bias": -10,
    "init_logit_scale": math.log(10),
    "vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    | {"width": 768, "heads": 12},
}
COCA = {
    "embed_dim": 512,
    "vision_cfg": {"attentional_pool": True, "attn_pooler_heads": 8},
    "text_cfg": {"heads": 8, "embed_cls": True},
    "multimodal_cfg": {"heads": 8},
}
MODELS = {"ViT-B-32": B32, "ViT-B-16-SigLIP": SIGLIP, "coca_ViT-B-32": COCA}


def of(name, config, drop=()):
    tree = {n: s for n, s in golden("open_clip", name).items() if n not in drop}
    return read(unread(tree), Config.of({FILE: {"model_cfg": config}} if config else {}))


@pytest.mark.parametrize("name", MODELS)
def test_published_models(name):
    fields, layout, size, notes = of(name, MODELS[name])
    want = models.create(name, **({"text_tower": {"cls_mask": "shifted"}} if "coca" in name else {}))
    assert alike(describe.build(fields), want) and size == 224 and notes == []
    assert layout.text == ("" if name == "ViT-B-32" else "text.") and (layout.trunk is None) == ("SigLIP" not in name)


@pytest.mark.parametrize("name", MODELS)
def test_without_a_configuration_the_sizes_are_the_same(name):
    fields, _, _, notes = of(name, {})
    found, want = describe.build(fields), models.create(name)
    eps = {"norm_epsilon": want.text_tower.norm_epsilon, "cls_mask": "text"}
    assert alike(found.text_tower.clone(**eps), want.text_tower) and found.image_tower == want.image_tower
    assert f"no {FILE} comes with it" in notes[0] and ("bidirectional" in notes[0]) == ("SigLIP" in name)


def test_what_only_the_configuration_shows():
    vision = {"head_width": 96, "norm_kwargs": {"eps": 1e-4}, "act_kwargs": {"approximate": "tanh"}}
    text = {"heads": 4, "pool_type": "eos", "eos_id": 7, "no_causal_mask": True}
    fields, *_ = of("ViT-B-32", changed(B32, vision_cfg=vision, text_cfg=text))
    model = describe.build(fields)
    image, text = model.image_tower, model.text_tower
    assert (image.heads, image.norm_epsilon, image.activation) == (8, 1e-4, "gelu_tanh")
    assert (text.heads, text.end_id, text.pool, text.causal, text.activation) == (4, 7, "end", False, "gelu")
    model = describe.build(of("coca_ViT-B-32", {**COCA, "quick_gelu": True})[0])
    assert {m.activation for m in (model.image_tower, model.text_tower, model.decoder)} == {"quick_gelu"}
    for own in ({"text_cfg": {**COCA["text_cfg"], "correct_cls_mask": True}}, {}):
        about = {FILE: {"model_cfg": {**COCA, **own}, "vit_jax": {} if own else {"correct_cls_mask": True}}}
        fields, *_ = read(unread(golden("open_clip", "coca_ViT-B-32")), Config.of(about))
        assert fields["text_tower"]["cls_mask"] == "text"
    assert of("ViT-B-16-SigLIP", SIGLIP)[0]["temperature"] == 10.0
    raw = read(unread(golden("open_clip", "ViT-B-32")), Config.of({"config.json": {**B32, "quick_gelu": True}}))
    assert raw[0]["image_tower"]["activation"] == "quick_gelu"  # one of open_clip's own model_configs


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("ViT-B-32", changed(B32, vision_cfg={"pool_type": "avg"}), "pool_type='avg' of the image tower cannot"),
        ("ViT-B-32", changed(B32, text_cfg={"pool_type": "none"}), "pool_type='none' of the text tower cannot"),
        ("ViT-B-32", changed(B32, text_cfg={"act_kwargs": {"approximate": "x"}}), "approximate='x'; allowed"),
        ("coca_ViT-B-32", changed(COCA, vision_cfg={"norm_kwargs": {"eps": 1e-6}}), "captioner with norm_kwargs"),
        ("ViT-B-16-SigLIP", changed(SIGLIP, vision_cfg={"timm_pool": "avg"}), "global_pool='avg'"),
    ],
)
def test_settings_that_are_not_ours(name, config, words):
    with pytest.raises(UserError, match=words):
        of(name, config)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("visual.layer1.0.conv1.weight", "a ResNet as image tower"),
        ("visual.attnpool.q_proj.weight", "a ResNet as image tower"),
        ("text.transformer.encoder.layer.0.output.dense.weight", "a text tower of Hugging Face's"),
        ("transformer.resblocks.0.attn.ln_q.weight", "norms or scales inside of attention"),
        ("visual.transformer.resblocks.3.attn.head_scale", "norms or scales inside of attention"),
        ("visual.transformer.resblocks.3.mlp.ln.weight", "norms or scales inside of attention"),
        ("visual.attn_pool_contrastive.query", "parallel or cascaded attentional pooling"),
        ("visual.head.mlp.fc1.weight", "an MLP as head"),
    ],
)
def test_parts_that_are_not_ours(extra, words):
    tree = golden("open_clip", "ViT-B-32") | {extra: (3,)}
    with pytest.raises(UserError, match=f"{words}.* cannot be expressed here .*{extra}"):
        read(unread(tree), Config.of({FILE: {"model_cfg": B32}}))


def images(**said):
    return preprocess(Config.of({FILE: {"model_cfg": B32, "preprocess_cfg": said}}), 224)


def test_images():
    clip = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    found, (note,) = images()
    assert found == Preprocess(224, 1.0, "bicubic", *clip) and "as for CLIP" in note
    found, notes = images(mean=[0.5, 0.4, 0.3], std=[1, 2, 3], interpolation="bilinear", resize_mode="shortest")
    assert found == Preprocess(224, 1.0, "bilinear", (0.5, 0.4, 0.3), (1.0, 2.0, 3.0)) and not notes
    for mode, ours in (("squash", "squash"), ("longest", "pad")):
        found, notes = images(mean=clip[0], resize_mode=mode, fill_color=7)
        assert (
            found.frame.mode == ours and found.frame.fill == ((7, 7, 7) if ours == "pad" else (0, 0, 0)) and not notes
        )
    found, notes = images(interpolation="random")  # which open_clip takes for bicubic
    assert found.interpolation == "bicubic" and not notes
    found, (note,) = images(interpolation="wavelet", resize_mode="shortest")
    assert found.interpolation == "bicubic" and "'wavelet' is not known here" in note
    assert "'fold' is not known here" in images(resize_mode="fold")[1][0]
    for wrong in ([1, 2], "abc", [1, 2, "x"]):
        with pytest.raises(UserError, match=r"mean=.* are not three numbers"):
            images(mean=wrong)


def test_trunks_that_are_not_ours():
    tree = golden("open_clip", "ViT-B-16-SigLIP") | {"visual.trunk.stages.0.blocks.0.conv.weight": (3,)}
    with pytest.raises(UserError, match=r"stages .* cannot be expressed here \(of which stages"):
        read(unread(tree), Config.of({FILE: {"model_cfg": SIGLIP}}))
