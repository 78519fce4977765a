"""Architectures as plain data: each is a model, and each of its other names is accepted."""

import json

from vit_jax import architectures, models


def test_every_row_is_a_model():
    assert {*architectures.NAMES} == {*models.MODELS} - {*models.FAMILIES}
    tables = (architectures.VIT, architectures.MODERN, architectures.MIXER, architectures.MONARCH_MIXER)
    tables += (
        architectures.CONVNEXT,
        architectures.HORNET,
        architectures.NF_RESNET,
        architectures.MOBILENET,
        architectures.VIM,
        architectures.TWO_TOWER,
        architectures.COCA,
    )
    for name, fields in {k: v for table in tables for k, v in table.items()}.items():
        assert models.MODELS[name].fields is fields
        json.dumps(fields)  # plain: nothing of JAX is in it


def test_patterns():
    assert architectures.names("vit_b*") == ["vit_b8", "vit_b14", "vit_b16", "vit_b32"]
    assert architectures.names("nothing") == [] and len(architectures.names()) == len({*architectures.NAMES})


def test_names_of_others():
    assert architectures.aliases("vit_r50_l32") == ["R50+ViT-L/32", "vit_large_r50_s32_224"]
    assert architectures.aliases("mixer_b16") == ["Mixer-B/16", "mixer_b16_224"]
    assert architectures.aliases("dinov3_vith16plus") == ["vit_huge_plus_patch16_dinov3"]
    assert architectures.aliases("coca_vit_b32") == ["coca_ViT-B-32"]
    assert all(models.create(other) == models.create(architectures.ALIASES[other]) for other in architectures.OPEN_CLIP)
