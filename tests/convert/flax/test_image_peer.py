"""timm's own reader of these files against ours: ViT, hybrids, big_vision's variants, every block."""

import dataclasses
import sys

import jax
import numpy as np
import pytest

from tests.convert.cases import rest_slow
from tests.convert.outputs import captured
from vit_jax import models
from vit_jax.convert import flax, rules
from vit_jax.convert.flax import big_vision
from vit_jax.convert.flax.image_peer import build_peer, peer
from vit_jax.convert.flax.rules import POSITIONS, Layout
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.io.tensors import Tensor, open_tensors, write_npz
from vit_jax.models import describe
from vit_jax.types import UserError

VIT = {"patch": 8, "width": 22, "depth": 2, "heads": 2, "mlp_dim": 49, "num_classes": 7, "activation": "gelu_tanh"}
BV = big_vision.LAYOUT
SIZE = 24
CASES = {
    "cls": ({}, Layout()),
    "gap, erf, another epsilon": (
        {"pool": "gap", "activation": "gelu", "norm_epsilon": 1e-4},
        Layout(cls_position=False),
    ),
    "without head": ({"num_classes": 0}, Layout()),
    "training state": ({}, Layout("opt/target/")),
    "root": ({"stem": (), "patch": 2}, Layout(group_norm=4)),
    "hybrid": ({"stem": (1, 2), "patch": 1}, Layout(group_norm=4)),
    "hybrid, new norms, timm's numerics": ({"stem": (2, 1), "patch": 1, "stem_numerics": "timm"}, Layout()),
    "big_vision cls": ({}, BV),
    "big_vision gap": ({"pool": "gap"}, dataclasses.replace(BV, prefix="")),
    "big_vision map": ({"pool": "map"}, BV),
    "big_vision map, relu": ({"pool": "map", "activation": "relu", "norm_epsilon": 1e-4}, BV),
    "big_vision scanned": ({"pool": "map"}, dataclasses.replace(BV, scanned=True)),
}


def draw(rng, path, shape):
    """Random parameters at which activations stay near 1, also deep in the stem."""
    if path.endswith("scale"):
        return 1 + 0.2 * rng.normal(size=shape)
    size = np.prod(shape[:-1]) ** -0.5 if path.endswith("kernel") else 0.2
    return rng.normal(size=shape) * size * (0.3 if path == "patch/kernel" else 1)


def written(rng, path, fields, layout, name="vit", size=SIZE):
    """A random model of ours, also at ``path``."""
    model = models.create(name, **fields)
    params = {k: draw(rng, k, s).astype(np.float32) for k, s in describe.shapes(model, size).items()}
    if not layout.cls_position and model.pool == "cls":
        params["position/embedding"][:, 0] = 0
    ours = Stored(model, {k: Tensor.of(x) for k, x in params.items()}, Preprocess(size))
    write_npz(path, rules.back(flax.ORIGINAL.rules(model, layout), ours.params, name="file"))
    return ours


def our_forward(ours, images):
    """Logits and every block's output."""
    logits, blocks = captured(ours, images)
    return logits, [blocks[f"block_{i}"] for i in range(ours.model.depth)]


@pytest.mark.parametrize("case", rest_slow(CASES, "cls", "hybrid", "big_vision map"))
def test_timm_reads_the_same_model(rng, tmp_path, timm, torch, case):
    fields, layout = CASES[case]
    ours = written(rng, tmp_path / "model.npz", VIT | fields, layout)
    with open_tensors(tmp_path / "model.npz") as theirs:
        fmt = next(f for f in (flax.ORIGINAL, flax.BIG_VISION) if f.matches(theirs.keys()))
        assert fmt.read(theirs, {}).layout == layout
    network, blocks = build_peer(tmp_path / "model.npz", ours.model), []
    for block in network.blocks:
        block.register_forward_hook(lambda *args: blocks.append(args[-1].numpy()))
    images = rng.uniform(-1, 1, size=(2, SIZE, SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        want = network(torch.tensor(images).permute(0, 3, 1, 2).contiguous()).numpy()
    got, our_blocks = our_forward(ours, images)
    assert 0.1 < want.std() < 10
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
    for x, y in zip(our_blocks, blocks, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(fmt.peer(tmp_path / "model.npz", ours.model)(images), want)


FULL = {
    "vit_ti16": ({}, Layout()),
    "vit_s16": ({"pool": "map"}, BV),
    "vit_b16": ({"num_classes": 21843}, Layout()),
    "vit_r_ti16": ({}, Layout(group_norm=4)),
    "vit_r26_s32": ({}, Layout(group_norm=4)),
    "vit_r50_b16": ({}, Layout(group_norm=4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_size(rng, tmp_path, timm, name):
    fields, layout = FULL[name]
    ours = written(rng, tmp_path / "model.npz", {"activation": "gelu_tanh"} | fields, layout, name, 224)
    images = rng.uniform(-1, 1, size=(2, 224, 224, 3)).astype(np.float32)
    got = jax.jit(ours.model.apply)({"params": ours.tree()}, images)
    want = peer(tmp_path / "model.npz", ours.model)(images)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * max(1, np.abs(want).max()))


def test_the_stem_has_the_epsilons_of_the_model(rng, tmp_path, timm, torch):
    """With kernels and images as small as the epsilons the numerics are far apart, and the peer follows either."""
    images = rng.uniform(-1e-3, 1e-3, size=(2, SIZE, SIZE, 3)).astype(np.float32)
    logits = {}
    for numerics in ("original", "timm"):
        fields = VIT | {"stem": (1,), "patch": 2, "stem_numerics": numerics}
        ours = written(np.random.default_rng(0), tmp_path / f"{numerics}.npz", fields, Layout())
        tiny = {k: Tensor.of(x.read() * 1e-3) if "/conv_" in k else x for k, x in ours.params.items()}
        ours = Stored(ours.model, tiny, ours.preprocess)
        write_npz(
            tmp_path / f"{numerics}.npz", rules.back(flax.ORIGINAL.rules(ours.model, Layout()), tiny, name="file")
        )
        logits[numerics] = our_forward(ours, images)[0]
        want = peer(tmp_path / f"{numerics}.npz", ours.model)(images)
        np.testing.assert_allclose(logits[numerics], want, rtol=0, atol=2e-5)
    assert np.abs(logits["original"] - logits["timm"]).max() > 1e-2


def test_a_file_that_timm_does_not_know_is_a_sentence(rng, tmp_path, timm):
    layout = Layout("", (0, 1, 0), POSITIONS[2], cls_position=True)
    ours = written(rng, tmp_path / "model.npz", VIT, layout)
    with pytest.raises(UserError, match=r"timm's reader of these files expects .*pos.*, so it cannot verify"):
        build_peer(tmp_path / "model.npz", ours.model)


def test_models_that_timm_has_not_are_sentences(tmp_path):
    for model, says in {
        models.create("mixer"): "no reader for Mixer files in this layout; convert to timm and verify there",
        models.create("vit", pre_logits=8): "does not know the layer pre_logits",
        models.create("vit", positions="sincos2d"): "does not know fixed sin-cos positions",
    }.items():
        with pytest.raises(UserError, match=says):
            build_peer(tmp_path / "model.npz", model)


@pytest.mark.parametrize("package", ["torch", "timm.layers"])
def test_a_missing_timm_is_a_sentence(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"building timm's own model takes the extra 'torch' .* pip install '.*\[t"):
        peer(tmp_path / "model.npz", models.create("vit"))
