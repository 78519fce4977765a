"""Names and shapes of whole models, as open_clip itself has them; whole heads stay together."""

import numpy as np
import pytest

from tests.convert.cases import rest_slow
from tests.convert.golden_trees import golden
from tests.convert.open_clip_models import random_tensors
from vit_jax import models
from vit_jax.convert.open_clip import rules
from vit_jax.convert.open_clip.rules import Layout
from vit_jax.convert.rules import back, into
from vit_jax.convert.timm.rules import Layout as Trunk
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe

NAMES = {
    "ViT-B-32": Layout(),
    "ViT-B-16-SigLIP": Layout("text.", Trunk()),
    "coca_ViT-B-32": Layout("text."),
    "coca_ViT-L-14": Layout("text."),
}


@pytest.mark.first(1)
@pytest.mark.parametrize("name", rest_slow(NAMES, "ViT-B-32", "ViT-B-16-SigLIP", "coca_ViT-B-32"))
def test_names_and_shapes(name):
    model = models.create(name)
    found = rules.rules(model, NAMES[name])
    shapes = describe.shapes(model, 224)
    ours = {p: Tensor(s, np.dtype("float32"), lambda: pytest.fail("was read")) for p, s in shapes.items()}
    theirs = back(found, ours, name=name)
    assert {n: t.shape for n, t in theirs.items()} == golden("open_clip", name)
    into(found, theirs, shapes, source=name)


def test_the_golden_file_is_open_clips(open_clip, torch):
    for name in NAMES:
        config = open_clip.get_model_config(name)
        custom = config.pop("custom_text", False)
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
        with torch.device("meta"):
            there = {n: tuple(x.shape) for n, x in kind(**config).state_dict().items()}
        assert there == golden("open_clip", name)


TOWER = {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 24}
PAIR = {
    "image_tower": {**TOWER, "name": "vit", "num_classes": 0, "patch": 8},
    "text_tower": {**TOWER, "vocab_size": 9, "length": 5, "end_id": 2},
}
COCA = {"image_tower": {"final_norm": False}, "text_tower": {"pool": "cls"}, "queries": 3, "pool_heads": 2}
PARTS = {
    "a trunk of timm's": ("two_tower", {"image_head": "biased"}, Layout(trunk=Trunk(prefix=1)),
                          ["visual.head.proj.weight", "visual.head.proj.bias", "visual.trunk.blocks.0.attn.qkv.bias"]),
    "a trunk's map": ("two_tower", {"image_head": "linear"}, Layout(trunk=Trunk(prefix=1)),
                      ["visual.head.proj.weight"]),
    "as wide as the embedding": ("coca", {"embed_dim": 16}, Layout("text."), ["visual.attn_pool.attn.in_proj_weight"]),
    "wider than the embedding": ("coca", {"embed_dim": 8}, Layout("text."),
                                 [f"visual.attn_pool.attn.{x}_proj_weight" for x in "qkv"]),
}  # fmt: skip


@pytest.mark.parametrize("case", PARTS)
def test_every_parameter_has_one_rule(case):
    kind, fields, layout, there = PARTS[case]
    fields = {"embed_dim": 16, **(COCA if kind == "coca" else {}), **fields}
    image, text = ({**PAIR[k], **fields.get(k, {})} for k in ("image_tower", "text_tower"))
    image |= {"patch_bias": layout.trunk is not None}
    decoder = {"decoder": {"depth": 1, "heads": 2, "mlp_dim": 32}} if kind == "coca" else {}
    model = models.create(kind, **fields | {"image_tower": image, "text_tower": text} | decoder)
    found = rules.rules(model, layout)
    assert sorted(path for r in found for path in r.ours) == sorted(describe.shapes(model, 16))
    theirs = [name for r in found for name in r.theirs]
    assert len(set(theirs)) == len(theirs)
    assert set(there) <= set(theirs)


def test_scalars_of_shape_one():
    model = models.create("siglip_vit_b16", image_tower={"depth": 1}, text_tower={"depth": 1})
    found = rules.rules(model, Layout("text.", Trunk(), scalars=(1,)))
    ours = {p: Tensor.of(x) for p, x in random_tensors({"logit_scale": (), "logit_bias": ()}).items()}
    scalars = [r for r in found if r.ours[0].startswith("logit")]
    theirs = back(scalars, ours, name="x")
    assert {n: t.shape for n, t in theirs.items()} == {"logit_scale": (1,), "logit_bias": (1,)}
    again, _ = into(scalars, theirs, {"logit_scale": (), "logit_bias": ()}, source="x")
    assert again["logit_bias"].read() == ours["logit_bias"].read()
