"""timm's MLP-Mixers: of any size in, of the sizes that it has a name for out."""

import pytest

from tests.convert.timm_models import check_equal, convert, mixer, tensors_of
from vit_jax.convert.format import check
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.timm import FORMAT
from vit_jax.convert.timm import mixer as codec
from vit_jax.models import create, describe
from vit_jax.types import UserError


def test_mixer(timm, torch):
    pretrained = check_equal(torch, mixer(torch), None)
    model = pretrained.model
    assert (model.patch, model.width, model.depth, model.token_dim, model.mlp_dim) == (8, 32, 2, 24, 96)
    assert pretrained.preprocess == Preprocess(32, 0.875, "bicubic")


def test_other_pools_are_refused(timm, torch):
    with pytest.raises(UserError, match="global_pool=''"):
        convert(tensors_of(mixer(torch)), {"architecture": "mixer_b16_224", "model_args": {"global_pool": ""}})


def test_every_parameter_has_one_rule():
    model = create("mixer", depth=2)
    rows = FORMAT.rules(model, None)
    assert sorted(path for r in rows for path in r.ours) == sorted(describe.shapes(model, 32))
    names = [name for r in rows for name in r.theirs]
    assert len(set(names)) == len(names) and codec.CODEC.matches(names)


def test_sizes_without_a_name():
    check(create("mixer_l32"), FORMAT, ())
    for fields, says in (
        ({"activation": "relu"}, "16/768/12 with relu; it knows 16/512/8"),
        ({"depth": 3}, "16/768/3"),
    ):
        with pytest.raises(UserError, match=says):
            check(create("mixer_b16", **fields), FORMAT, ())
