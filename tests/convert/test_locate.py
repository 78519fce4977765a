"""Where the weights of a file lie: under whatever prefix a known format is found, and what is said of the rest."""

import numpy as np
import pytest

from vit_jax.convert.locate import locate
from vit_jax.io.tensors import Tensor
from vit_jax.types import UserError

LEAF = Tensor.of(np.zeros(2, np.float32))
NAMES = ("patch.weight", "blocks.0.bias")


def file(*prefixes, others=()):
    return dict.fromkeys([*(p + name for p in prefixes for name in NAMES), *others], LEAF)


def found(theirs):
    return locate(theirs, lambda names: "patch.weight" in names or "patch/weight" in names, "a.pth")


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.module.",
        "state_dict.model.",
        "model.teacher.backbone.",
        "params/",
        "a/b.c/",
        "of_some_name.",
    ],
)
def test_any_prefix_is_found_and_said(prefix):
    own, notes = found(file(prefix))
    assert list(own) == list(NAMES) and notes == [f"its weights are those under {prefix!r}"]


def test_none_is_none():
    theirs = file("")
    assert found(theirs) == (theirs, []) and found(theirs)[0] is theirs
    assert found(file("modules", others=["patch.weights"])) is None
    assert found({}) is None and found({".": LEAF, "": LEAF, "..": LEAF}) is None
    assert found(file("a." * 7)) and found(file("a." * 9)) is None


@pytest.mark.parametrize(
    ("prefixes", "taken"),
    [
        (["student.module.", "teacher."], "teacher."),
        (["model_ema.", "model."], "model."),
        (["state_dict_ema.", "state_dict."], "state_dict."),
        (["state_dict.module.momentum_encoder.", "state_dict.module.base_encoder."], "state_dict.module.base_encoder."),
        (["state_dict.encoder_k.", "state_dict.encoder_q."], "state_dict.encoder_q."),
        (["state_dict.model.", "callbacks.x.model."], "state_dict.model."),
        (["target_network.", "online_network."], "online_network."),
    ],
)
def test_of_several_the_usual_one(prefixes, taken):
    own, notes = found(file(*prefixes, others=["epoch", "optimizer.state.0.exp_avg"]))
    other = next(p for p in prefixes if p != taken)
    assert list(own) == list(NAMES)
    assert notes[0] == f"its weights are those under {taken!r} (there are others under {other!r})"
    assert notes[1].startswith("4 other tensors are left out (")


def test_of_several_unusual_ones_none():
    with pytest.raises(UserError, match=r"a.pth holds several models, under 'left.', 'right.'; save the one you mean"):
        found(file("left.", "right."))
    with pytest.raises(UserError, match=r"'a.0.', 'a.1.', 'a.2.', 'a.3.' and 3 more"):
        found(file(*(f"a.{i}." for i in range(7))))


def test_loose_scalars_do_not_hide_a_part():
    own, notes = found(file("state_dict.module.", others=["best_acc1"]))
    assert list(own) == list(NAMES) and notes[1] == "another tensor is left out (best_acc1)"
    own, notes = found(file("", others=["decoder.module.patch.weight"]))  # a format at the top needs no prefix
    assert len(own) == 3 and notes == []
