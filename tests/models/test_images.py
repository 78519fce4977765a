"""The table of image models is the part of all models that takes an image alone."""

from __future__ import annotations

from vit_jax import architectures, models
from vit_jax.models import images


def test_image_models_are_a_part_of_all():
    assert set(images.IMAGE_MODELS) < set(models.MODELS)
    assert set(images.IMAGES) == set(images.IMAGE_MODELS) | set(architectures.IMAGE_ALIASES)
    for name in images.IMAGE_MODELS:
        assert [x.shape for x in models.create(name).inputs(32)] == [(1, 32, 32, 3)]
        assert models.MODELS[name] is images.IMAGE_MODELS[name]


def test_the_others_take_a_pair():
    others = set(models.MODELS) - set(images.IMAGE_MODELS) - set(models.FAMILIES)
    assert "clip_vit_b32" in others and "coca_vit_b32" in others
    for name in others:
        model = models.create(name)
        assert [x.shape for x in model.inputs(32)] == [(1, 32, 32, 3), (1, model.text_tower.length)]
