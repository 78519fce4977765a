"""What is refused, and that nothing is left of it."""

import contextlib

import numpy as np
import pytest
import safetensors.numpy

from tests.convert.small_models import FOREIGN, MODELS, PAIR, pretrained, target
from vit_jax import models
from vit_jax.convert import formats, read, write
from vit_jax.types import UsageError, UserError


@pytest.mark.parametrize(
    ("name", "to", "words"),
    [
        ("mixer", "hf", "Mixer"),
        ("tanh", "timm", "pre_logits"),
        ("registers", "npz", "register"),
        ("map", "npz", "big_vision"),
        ("dinov2", "timm", "cls_gap"),
        *(("topk", to, "no activation='topk\\(5\\)'; write --to vit_jax") for to in FOREIGN),
        *(("m2", to, "no MonarchMixer; write --to vit_jax") for to in FOREIGN),
        *(
            ("monarch", to, "has dense maps alone, not mlp_linear='monarch\\(2\\)'; add --linear dense")
            for to in FOREIGN[:4]
        ),
        ("cls", "tim", "unknown format 'tim'; did you mean 'timm'?"),
    ],
)
def test_what_a_format_cannot_say(name, to, words, rng, tmp_path):
    with pytest.raises(UserError, match=words):
        write.save(pretrained(MODELS[name], rng), target(tmp_path, to), to)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(rng, tmp_path):
    there = pretrained(MODELS["cls"], rng)
    for place, to in (("folder", "timm"), ("a.npz", "npz"), ("run", "vit_jax")):
        path = tmp_path / place
        path.write_text("mine") if path.suffix else path.mkdir()
        with pytest.raises(UserError, match="exists and is not overwritten"):
            write.save(there, path, to)
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(UserError, match=r"b\.json exists"):
        write.save(there, tmp_path / "b.npz", "npz")
    assert (tmp_path / "a.npz").read_text() == "mine" and not list((tmp_path / "folder").iterdir())
    for place, to, form in (
        ("x.pth", "timm", "a folder or a file ending in .safetensors"), ("x", "npz", "a file ending in .npz"),
        ("x.npz", "vit_jax", "a folder"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"is no place for {to}; name {form}"):
            write.save(there, tmp_path / place, to)
    write.save(there, tmp_path / "out_best.pth", "vit_jax")
    assert (tmp_path / "out_best.pth" / "config.json").exists()


@pytest.mark.parametrize("to", list(formats.TARGETS))
def test_nan_leaves_nothing_behind(to, rng, tmp_path):
    if to == "open_clip":
        there = pretrained(models.create("two_tower", **PAIR), rng)
        there.params["text_tower/encoder/block_0/mlp/mlp_out/kernel"].read()[3, 4] = np.nan
    else:
        there = pretrained(MODELS["tanh" if to == "big_vision" else "cls"], rng)
        there.params["encoder/block_1/mlp/mlp_out/kernel"].read()[3, 4] = np.nan
    if to == "vit_jax":  # ours is checked where weights come in
        write.save(pretrained(MODELS["cls"], rng), tmp_path / "in.safetensors", "timm")
        arrays = safetensors.numpy.load_file(tmp_path / "in.safetensors")
        arrays["blocks.1.mlp.fc2.weight"][4, 3] = np.nan
        safetensors.numpy.save_file(arrays, tmp_path / "in.safetensors")
    stack = contextlib.ExitStack()
    if to == "vit_jax":
        there = stack.enter_context(read.load(tmp_path / "in.safetensors"))
    before = sorted(tmp_path.iterdir())
    with stack, pytest.raises(UserError, match="holds NaN or infinity in 1 of"):
        write.save(there, target(tmp_path, to), to)
    assert sorted(tmp_path.iterdir()) == before
