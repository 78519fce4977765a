"""Files of the original repository: what its code computes, in NumPy; both ways; what it cannot express."""

import dataclasses
import json
import re

import numpy as np
import pytest

from tests.convert.flax.reference import read_all, same_bits
from tests.convert.outputs import captured
from vit_jax import models
from vit_jax.convert import flax
from vit_jax.convert.flax.image import SIDECAR
from vit_jax.convert.flax.rules import Layout
from vit_jax.convert.format import check
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import back, into
from vit_jax.io.tensors import Tensor, open_tensors, write_npz
from vit_jax.models import describe
from vit_jax.types import UserError

P, D, K, F, DEPTH, CLASSES, SIZE = 8, 16, 2, 24, 2, 5, 32
N, E = (SIZE // P) ** 2, D // K


def load(path, about=None):
    """The model of a file, its parameters read, and what was found."""
    with open_tensors(path) as theirs:
        assert flax.ORIGINAL.matches(theirs.keys())
        found = flax.ORIGINAL.read(theirs, about or {})
        model = describe.build(found.model)
        rules = flax.ORIGINAL.rules(model, found.layout)
        params, _ = into(
            rules, theirs, describe.shapes(model, found.preprocess.size), source="file", unused=found.unused
        )
        params = {name: Tensor.of(tensor.read()) for name, tensor in params.items()}
    return Stored(model, params, found.preprocess, found.class_names, found.output_activation), found


def pretrained(rng, model, size, **fields):
    """A model of ours with random parameters."""
    params = {k: Tensor.of(rng.normal(size=s).astype(np.float32)) for k, s in describe.shapes(model, size).items()}
    return Stored(model, params, Preprocess(size), **fields)


def written(path, ours):
    """The JSON beside the file that ``ours`` was written to."""
    writing = flax.ORIGINAL.write(ours)
    write_npz(path, back(flax.ORIGINAL.rules(ours.model, writing.layout), ours.params, name="npz"))
    return json.loads(json.dumps(writing.about))


# What the original's code computes, in float64, on its own names and shapes.


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def norm(x, w, name):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}/scale"] + w[f"{name}/bias"]


def dense(x, w, name):
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def mlp(x, w, name):
    return dense(gelu(dense(x, w, f"{name}/Dense_0")), w, f"{name}/Dense_1")


def attention(x, w, name):
    q, k, v = (
        np.einsum("bnd,dke->bnke", x, w[f"{name}/{n}/kernel"]) + w[f"{name}/{n}/bias"]
        for n in ("query", "key", "value")
    )
    logits = np.einsum("bnke,bmke->bknm", q, k) / np.sqrt(E)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = np.einsum("bknm,bmke->bnke", weights / weights.sum(-1, keepdims=True), v)
    return np.einsum("bnke,ked->bnd", mixed, w[f"{name}/out/kernel"]) + w[f"{name}/out/bias"]


def patches(image, w, name):
    grid = image.reshape(len(image), SIZE // P, P, SIZE // P, P, 3)
    tokens = np.einsum("bhpwqc,pqcd->bhwd", grid, w[f"{name}/kernel"]) + w[f"{name}/bias"]
    return tokens.reshape(len(image), N, D)


def original_vit(image, w):
    """Logits and every block's output."""
    x = patches(image, w, "embedding")
    if "cls" in w:
        x = np.concatenate([np.broadcast_to(w["cls"], (len(image), 1, D)), x], 1)
    x = x + w["Transformer/posembed_input/pos_embedding"]
    blocks = []
    for i in range(DEPTH):
        b = f"Transformer/encoderblock_{i}"
        x = x + attention(norm(x, w, f"{b}/LayerNorm_0"), w, f"{b}/MultiHeadDotProductAttention_1")
        x = x + mlp(norm(x, w, f"{b}/LayerNorm_2"), w, f"{b}/MlpBlock_3")
        blocks.append(x)
    x = norm(x, w, "Transformer/encoder_norm")
    x = x[:, 0] if "cls" in w else x.mean(1)
    x = np.tanh(dense(x, w, "pre_logits")) if "pre_logits/kernel" in w else x
    return (dense(x, w, "head") if "head/kernel" in w else x), blocks


def original_mixer(image, w):
    x, blocks = patches(image, w, "stem"), []
    for i in range(DEPTH):
        b = f"MixerBlock_{i}"
        x = x + mlp(norm(x, w, f"{b}/LayerNorm_0").swapaxes(1, 2), w, f"{b}/token_mixing").swapaxes(1, 2)
        x = x + mlp(norm(x, w, f"{b}/LayerNorm_1"), w, f"{b}/channel_mixing")
        blocks.append(x)
    return dense(norm(x, w, "pre_head_layer_norm").mean(1), w, "head"), blocks


def draw(rng, shapes):
    """Random arrays of a size at which activations stay near 1."""

    def one(name, shape):
        if name.endswith("scale"):
            return 1 + 0.2 * rng.normal(size=shape)
        fan_in = np.prod(shape[:1] if "/query" in name or "/key" in name or "/value" in name else shape[:-1])
        return rng.normal(size=shape) * (fan_in**-0.5 if name.endswith("kernel") else 0.2)

    return {name: one(name, shape).astype(np.float32) for name, shape in shapes.items()}


def linear(name, *shape, out=()):
    return {f"{name}/kernel": shape, f"{name}/bias": out or shape[-1:]}


def layer_norm(name):
    return {f"{name}/scale": (D,), f"{name}/bias": (D,)}


def vit_file(cls, pre_logits, head):
    shapes = linear("embedding", P, P, 3, D) | layer_norm("Transformer/encoder_norm")
    shapes["Transformer/posembed_input/pos_embedding"] = (1, N + cls, D)
    for i in range(DEPTH):
        b = f"Transformer/encoderblock_{i}"
        shapes |= layer_norm(f"{b}/LayerNorm_0") | layer_norm(f"{b}/LayerNorm_2")
        for name in ("query", "key", "value"):
            shapes |= linear(f"{b}/MultiHeadDotProductAttention_1/{name}", D, K, E, out=(K, E))
        shapes |= linear(f"{b}/MultiHeadDotProductAttention_1/out", K, E, D)
        shapes |= linear(f"{b}/MlpBlock_3/Dense_0", D, F) | linear(f"{b}/MlpBlock_3/Dense_1", F, D)
    shapes |= {"cls": (1, 1, D)} if cls else {}
    shapes |= linear("pre_logits", D, 12) if pre_logits else {}
    return shapes | (linear("head", 12 if pre_logits else D, CLASSES) if head else {})


def mixer_file():
    shapes = linear("stem", P, P, 3, D) | layer_norm("pre_head_layer_norm") | linear("head", D, CLASSES)
    for i in range(DEPTH):
        b = f"MixerBlock_{i}"
        shapes |= layer_norm(f"{b}/LayerNorm_0") | layer_norm(f"{b}/LayerNorm_1")
        shapes |= linear(f"{b}/token_mixing/Dense_0", N, 12) | linear(f"{b}/token_mixing/Dense_1", 12, N)
        shapes |= linear(f"{b}/channel_mixing/Dense_0", D, F) | linear(f"{b}/channel_mixing/Dense_1", F, D)
    return shapes


def our_forward(ours, image):
    """Logits and every block's output."""
    logits, blocks = captured(ours, image.astype(np.float32))
    return logits, [blocks[f"block_{i}"] for i in range(ours.model.depth)]


FILES = {
    "vit": (vit_file(True, False, True), original_vit),
    "vit without class token": (vit_file(False, False, True), original_vit),
    "vit with pre_logits": (vit_file(True, True, True), original_vit),
    "vit without head": (vit_file(True, True, False), original_vit),
    "mixer": (mixer_file(), original_mixer),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_computes_what_the_original_computes(rng, tmp_path, kind):
    shapes, forward = FILES[kind]
    weights = draw(rng, shapes)
    np.savez(tmp_path / "model.npz", **weights)
    ours, found = load(tmp_path / "model.npz")
    image = rng.uniform(-1, 1, size=(2, SIZE, SIZE, 3))
    want, blocks = forward(image, {name: x.astype(np.float64) for name, x in weights.items()})
    got, our_blocks = our_forward(ours, image)
    assert 0.1 < want.std() < 10
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
    for x, y in zip(our_blocks, blocks, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5)
    again = back(flax.ORIGINAL.rules(ours.model, found.layout), ours.params, name="npz")
    same_bits(read_all(again), weights)


VIT = {"patch": P, "width": D, "depth": DEPTH, "heads": K, "mlp_dim": F, "num_classes": CLASSES}
MODELS = {
    "cls": ("vit", VIT, SIZE),
    "gap": ("vit", VIT | {"pool": "gap"}, SIZE),
    "pre_logits": ("vit", VIT | {"pre_logits": 9, "activation": "relu", "norm_epsilon": 1e-5}, 24),
    "no head": ("vit", VIT | {"num_classes": 0, "heads": 4, "drop_path": 0.1, "scan": True}, SIZE),
    "root": ("vit", VIT | {"stem": (), "patch": 2, "depth": 1}, 32),
    "hybrid": ("vit", VIT | {"stem": (1, 2), "patch": 1, "depth": 1, "stem_numerics": "timm"}, 32),
    "mixer": ("mixer", {k: v for k, v in VIT.items() if k != "heads"} | {"token_dim": 7}, SIZE),
    "mixer without head": ("mixer", {"patch": 4, "width": 8, "depth": 1, "token_dim": 3, "num_classes": 0}, 16),
}


@pytest.mark.parametrize("kind", MODELS)
def test_ours_come_back_bit_for_bit(rng, tmp_path, kind):
    name, fields, size = MODELS[kind]
    ours = pretrained(rng, models.create(name, **fields), size, class_names=tuple("abcde"), output_activation="sigmoid")
    ours = dataclasses.replace(ours, preprocess=Preprocess(size, 0.9, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.3, 0.1), 50))
    about = written(tmp_path / "model.npz", ours)
    again, found = load(tmp_path / "model.npz", about)
    assert (again.model, again.preprocess, again.class_names, again.output_activation) == (
        ours.model,
        ours.preprocess,
        ours.class_names,
        ours.output_activation,
    )
    assert "assumed" not in " ".join(found.notes).replace("average pooling is assumed", "")
    same_bits(read_all(again.params), read_all(ours.params))


@pytest.mark.parametrize("rank", [1, 4])
def test_old_and_new_group_norms_keep_their_shape(rng, tmp_path, rank):
    model = models.create("vit", **VIT | {"stem": (2,), "patch": 1, "activation": "gelu_tanh"})
    ours = pretrained(rng, model, 16)
    layout = Layout(group_norm=rank)
    theirs = back(flax.ORIGINAL.rules(model, layout), ours.params, name="npz")
    norms = {name: tensor for name, tensor in theirs.items() if "/gn" in f"/{name}"}
    assert {len(tensor.shape) for tensor in norms.values()} == {rank} and len(norms) == 2 * (1 + 4 + 3)
    write_npz(tmp_path / "model.npz", theirs)
    again, found = load(tmp_path / "model.npz")
    assert again.model == model and found.layout == layout and found.preprocess.size == 16
    same_bits(read_all(back(flax.ORIGINAL.rules(model, found.layout), again.params, name="npz")), read_all(theirs))


def test_linen_numbers_and_a_training_state_are_read_too(rng, tmp_path):
    """The original reads both numberings; ``opt/target/`` is where Flax's first optimizers kept the parameters."""
    model = models.create("vit", **VIT, activation="gelu_tanh")
    ours, layout = pretrained(rng, model, SIZE), Layout("opt/target/", (0, 1, 0))
    theirs = read_all(back(flax.ORIGINAL.rules(model, layout), ours.params, name="npz"))
    assert "opt/target/Transformer/encoderblock_1/LayerNorm_1/bias" in theirs
    np.savez(tmp_path / "model.npz", **theirs, **{"opt/state/step": np.int64(3), "opt/state/cls/mu": np.zeros(3)})
    again, found = load(tmp_path / "model.npz")
    assert found.layout == layout and again.model == model
    assert sorted(found.unused) == ["opt/state/cls/mu", "opt/state/step"]
    same_bits(read_all(again.params), read_all(ours.params))


def test_what_the_original_computes_otherwise_is_said(rng):
    def notes(**fields):
        model = models.create("vit", **VIT | {"patch": 1} | fields)
        return " ".join(flax.ORIGINAL.write(pretrained(rng, model, 4)).notes)

    assert notes(activation="gelu_tanh") == ""
    assert notes(activation="gelu_tanh", stem_numerics="timm") == ""  # there is no stem
    assert "activation 'gelu_tanh', this model with 'gelu'" in notes()
    assert "norm_epsilon 1e-06, this model with 1e-05" in notes(activation="gelu_tanh", norm_epsilon=1e-5)
    hybrid = models.create("vit", **VIT | {"patch": 1}, stem=(1,), stem_numerics="timm", activation="gelu_tanh")
    (note,) = flax.ORIGINAL.write(pretrained(rng, hybrid, 8)).notes
    assert "stem_numerics 'original', this model with 'timm': its outputs there differ" in note


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"registers": 2}, "no registers; use --to timm."),
        ({"layer_scale": 0.1, "registers": 1}, "no registers and no LayerScale; use --to timm."),
        ({"pool": "map"}, "no attention pooling (pool 'map'); use --to big_vision."),
        ({"pool": "map", "registers": 1}, "no registers and no attention pooling (pool 'map'); use --to timm."),
        ({"pool": "map", "stem": ()}, "no attention pooling (pool 'map'); use --to timm."),
        ({"positions": "sincos2d", "pre_logits": 4}, "no fixed sin-cos positions; use --to big_vision."),
        ({"pool": "cls_gap"}, "no class token beside the average (pool 'cls_gap'); use --to vit_jax."),
        ({"registers": 1, "pre_logits": 4}, "no registers; use --to vit_jax."),
    ],
)
def test_what_the_original_has_not_is_refused(fields, says):
    with pytest.raises(UserError, match=re.escape(f"the models of the original repository have {says}")):
        check(models.create("vit", **VIT, **fields), flax.ORIGINAL, ())


@pytest.mark.parametrize(
    ("names", "matches"),
    [
        (["Transformer/encoder_norm/bias", "Transformer/posembed_input/pos_embedding"], True),
        (["Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias"], True),  # a damaged file is still its format
        (["conv_root/kernel", "Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias"], True),
        (["MixerBlock_0/LayerNorm_0/bias"], True),
        (["params/MixerBlock_0/LayerNorm_0/bias"], False),
        (["pos_embedding", "Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias"], False),
        (["Transformer/pos_embedding", "Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias"], False),
        (["img/Transformer/posembed_input/pos_embedding", "img/Transformer/encoder_norm/bias", "txt/x", "t"], True),
        (["params/img/Transformer/encoder_norm/bias", "params/txt/x"], False),
        (["img/Transformer/encoder_norm/bias"], False),
        (["blocks.0.norm1.weight", "cls_token"], False),
        (["vit.embeddings.cls_token"], False),
        (["encoder/block_0/norm_mlp/scale", "cls"], False),
    ],
)
def test_files_are_told_apart_by_their_names(names, matches):
    assert flax.ORIGINAL.matches(names) is matches


def test_the_sidecar_is_json_of_our_own():
    ours = Stored(models.create("vit_b16", num_classes=2), {}, Preprocess(224), ("a", "b"))
    content = flax.ORIGINAL.write(ours).about[SIDECAR]
    assert content["model"] == {"name": "vit_b16", "num_classes": 2} and content["class_names"] == ["a", "b"]
    assert content["preprocess"]["size"] == 224 and content["output_activation"] == "softmax"
