"""timm's ViTs: what no file can say of one, and that ViTs and Mixers are told apart."""

import pytest

from vit_jax.convert.format import check
from vit_jax.convert.timm import FORMAT, mixer, vit
from vit_jax.models import create
from vit_jax.types import UserError


def test_families_are_told_apart():
    assert FORMAT.codec(create("vit")) is vit.CODEC and FORMAT.codec(create("mixer")) is mixer.CODEC
    for names, codec in ((("cls_token", "patch_embed.proj.bias"), vit), (("stem.proj.weight", "norm.bias"), mixer)):
        assert [c for c in FORMAT.codecs if c.matches(names)] == [codec.CODEC]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"pool": "cls_gap"}, r"timm has no pool='cls_gap'; it has cls, gap, map: write another format\."),
        ({"pre_logits": 8}, r"timm has no layer before the head \(pre_logits=8\); write another format\."),
        ({"stem": (1,)}, r"timm has no stem=\(1,\); it has \(\), \(2, 2, 2, 2\), .*: write another format\."),
        ({"stem": (), "norm_epsilon": 1e-5}, "timm has no norm_epsilon=1e-05, but 1e-06 and, in a ViT without a stem"),
    ],
)
def test_limits(fields, says):
    with pytest.raises(UserError, match=f"^{says}"):
        check(create("vit", **fields), FORMAT, ())


def test_within_the_limits():
    for fields in ({"norm_epsilon": 1e-5}, {"norm_epsilon": 1e-12}, {"pool": "map", "stem": (3, 4, 9)}):
        check(create("vit", **fields), FORMAT, ())
