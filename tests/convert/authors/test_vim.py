"""Vim's own names: every one of them once, and where each number goes."""

import numpy as np
import pytest

from vit_jax.convert.authors import FORMAT
from vit_jax.convert.authors import vim as codec
from vit_jax.convert.rules import back, into
from vit_jax.io.tensors import Tensor
from vit_jax.models import create, describe
from vit_jax.types import UserError

D, E, R, N, PATCHES = 24, 48, 2, 5, 9
MODEL = create("vim", patch=4, width=D, depth=2, state=N, num_classes=3)


def file():
    """Random tensors by the names of the published code, which are written out here."""
    shapes = {"cls_token": (1, 1, D), "pos_embed": (1, PATCHES + 1, D), "norm_f.weight": (D,)}
    shapes |= {"patch_embed.proj.weight": (D, 3, 4, 4), "patch_embed.proj.bias": (D,)}
    shapes |= {"head.weight": (3, D), "head.bias": (3,)}
    for i in range(2):
        mixer = {"in_proj.weight": (2 * E, D), "out_proj.weight": (D, E)}
        for end in ("", "_b"):
            mixer |= {f"conv1d{end}.weight": (E, 1, 4), f"conv1d{end}.bias": (E,)}
            mixer |= {f"x_proj{end}.weight": (R + 2 * N, E), f"dt_proj{end}.weight": (E, R)}
            mixer |= {f"dt_proj{end}.bias": (E,), f"A{end}_log": (E, N), f"D{end}": (E,)}
        shapes |= {f"layers.{i}.mixer.{name}": shape for name, shape in mixer.items()}
        shapes[f"layers.{i}.norm.weight"] = (D,)
    rng = np.random.default_rng(0)
    return {name: Tensor.of(rng.standard_normal(shape).astype(np.float32)) for name, shape in shapes.items()}


def test_every_number_has_its_place():
    there = file()
    assert FORMAT.matches(there)
    found = FORMAT.read(there, {})
    assert describe.build(found.model) == MODEL and found.preprocess.size == 12
    assert "a class token in the middle, halved sums of two directions" in found.notes[0]
    rules = codec.rules(MODEL)
    ours, _ = into(rules, there, describe.shapes(MODEL, 12), source="it")
    again = back(rules, ours, name="it")
    assert again.keys() == there.keys()
    assert all(np.array_equal(again[name].read(), there[name].read()) for name in there)
    mixer = "encoder/block_1/mixer"
    backward, theirs = f"{mixer}/backward", "layers.1.mixer"
    for path, name, place in (
        (f"{mixer}/in/kernel", f"{theirs}.in_proj.weight", lambda x: x.T),
        (f"{backward}/x_proj/kernel", f"{theirs}.x_proj_b.weight", lambda x: x.T),
        (f"{backward}/A_log", f"{theirs}.A_b_log", lambda x: x),
        (f"{backward}/bias_dt", f"{theirs}.dt_proj_b.bias", lambda x: x),
        (f"{mixer}/forward/D", f"{theirs}.D", lambda x: x),
        (f"{mixer}/forward/kernel_conv", f"{theirs}.conv1d.weight", lambda x: np.stack([x[:, 0, k] for k in range(4)])),
    ):
        np.testing.assert_array_equal(ours[path].read(), place(there[name].read()), err_msg=path)


def test_the_position_of_the_class_token_is_in_the_middle_there():
    """Of 9 patches and the token: behind four of them, as tokens are put together."""
    there = file()
    rows = np.arange(10, dtype=np.float32)[None, :, None] * np.ones((1, 1, D), np.float32)
    there["pos_embed"] = Tensor.of(rows)
    ours, _ = into(codec.rules(MODEL), there, describe.shapes(MODEL, 12), source="it")
    assert ours["position/embedding"].read()[0, :, 0].tolist() == [4, 0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_what_ours_has_not():
    there = file()
    for name, says in (("layers.0.mixer.conv1d_b.weight", "scans of one direction"), ("cls_token", "no class token")):
        with pytest.raises(UserError, match=f"{says} cannot be expressed here .*there is no {name}"):
            FORMAT.read({k: v for k, v in there.items() if k != name}, {})
