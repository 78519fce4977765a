"""One check of what a format has not: families that are new to it, and structured values of fields."""

import dataclasses
import re
from typing import Any

import flax.linen as nn
import pytest

from tests.convert.small_models import MODELS, PAIR
from vit_jax import models
from vit_jax.convert.format import Limit, check, check_limits, modules
from vit_jax.convert.formats import FORMATS
from vit_jax.layers.mlp import TopK
from vit_jax.models import Features, ImageModel
from vit_jax.models.describe import structured
from vit_jax.types import UserError


class ConvNet(ImageModel):
    """A family that no format knows."""

    widths: tuple[int, ...] = (8, 16)

    def encode(self, image: Any, train: bool) -> Features:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Merge:
    """A reducer of one's own."""

    tokens: int = 8


PAIRED = models.create("two_tower", **PAIR)


def refused(model: nn.Module, fmt: str, says: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(f'{FORMATS[fmt].title} has {says}')}$"):
        check(model, FORMATS[fmt], FORMATS.values())


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_new_family_is_one_sentence_for_all(fmt):
    refused(ConvNet(), fmt, "no ConvNet; write --to vit_jax.")
    new = "TwoTower" if fmt in ("timm", "authors") else "ConvNet"
    refused(PAIRED.clone(image_tower=ConvNet()), fmt, f"no {new}; write --to vit_jax.")
    refused(MODELS["m2"], fmt, "no MonarchMixer; write --to vit_jax.")


def test_who_has_it_is_named():
    refused(PAIRED, "timm", "no TwoTower; write --to open_clip.")
    refused(MODELS["cls"], "open_clip", "no ViT by itself; write --to timm.")
    refused(MODELS["mixer"], "hf", "no Mixer; write --to timm.")
    refused(PAIRED.clone(image_tower=MODELS["mixer"]), "hf", "no Mixer; write --to npz.")
    for fmt in ("hf", "npz", "big_vision"):
        refused(models.create("coca_vit_b32"), fmt, "no CoCa; write --to open_clip.")


@pytest.mark.parametrize("fmt", FORMATS)
def test_structured_values_are_one_sentence_for_all(fmt):
    dense = "dense maps alone, not {}; add --linear dense, which multiplies them out, or write --to vit_jax."
    for field in ("qkv_linear", "out_linear", "mlp_linear"):
        model = models.create("vit", **{field: "monarch(2)"})
        for owner in (model, PAIRED.clone(image_tower=model)):
            refused(owner, fmt, dense.format(f"{field}='monarch(2)'"))
    refused(models.create("mixer", token_linear="monarch(4)"), fmt, dense.format("token_linear='monarch(4)'"))
    refused(MODELS["topk"], fmt, "no activation='topk(5)'; write --to vit_jax.")
    for field in ("adapter", "rotary", "logit_bias", "reduce"):
        for owner in (MODELS["cls"], PAIRED.image_tower):
            refused(owner.clone(**{field: Merge()}), fmt, f"no {field}='Merge(tokens=8)'; write --to vit_jax.")


def test_what_is_within_a_model():
    assert [type(module).__name__ for module in modules(models.create("coca_vit_b32"))] == [
        "CoCa", "ViT", "TextTransformer", "TextDecoder"
    ]  # fmt: skip
    assert structured(MODELS["cls"]) == {} and structured(MODELS["cls"].clone(activation=TopK(3))) == {
        "activation": "topk(3)"
    }


def test_what_is_allowed():
    for name, kinds in {"timm": ("cls",), "hf": ("cls",), "npz": ("cls", "mixer", "hybrid")}.items():
        for kind in kinds:
            check(MODELS[kind], FORMATS[name], ())
    check(models.create("mixer_s16"), FORMATS["timm"], ())
    for name, kind in {"open_clip": "coca_vit_b32", "hf": "clip_vit_b32", "big_vision": "siglip_vit_b16"}.items():
        check(models.create(kind), FORMATS[name], ())
    for name in ("open_clip", "hf", "npz", "big_vision"):
        assert FORMATS[name].codec(PAIRED) is not None
    assert dataclasses.replace(FORMATS["hf"], codecs=()).codec(PAIRED) is None


def test_limits_of_one_sentence_are_told_in_one():
    """With the first format that has all of it; a limit of whom the format is among those that have it is none."""
    lacks = "{title} has no {what}; use --to {to}."
    limits = (
        Limit(models.ViT, "registers", (0,), lacks, "registers", ("a", "b")),
        Limit(models.ViT, "pool", lambda pool: pool == "cls", lacks, "pool={0.pool!r}", ("b",)),
        Limit(models.ViT, "pre_logits", (None,), lacks, "tanh", ("b", "here")),
        Limit(models.ViT, "", lambda m: m.width < 64, "too wide: {0.width}."),
        Limit(models.TwoTower, "text_tower.pool", ("first",), "another.", lambda m: m.text_tower.pool),
    )

    def says(model: nn.Module, name: str = "here") -> str:
        with pytest.raises(UserError) as e:
            check_limits(model, limits, name, "It")
        return str(e.value)

    small = models.create("vit", width=32, heads=2)
    check_limits(small.clone(pre_logits=4), limits, "here")
    check_limits(MODELS["mixer"], limits)  # none is of its class
    assert says(small.clone(registers=1)) == "It has no registers; use --to a."
    assert says(small.clone(registers=1, pool="gap", width=64)) == "It has no registers and no pool='gap'; use --to b."
    assert says(small.clone(registers=1, pre_logits=4)) == "It has no registers; use --to b."
    assert says(MODELS["cls"]) == "too wide: 64."
    assert says(PAIRED.clone(image_tower=small)) == "another."
