"""Files of big_vision: its forward pass in NumPy, both ways, stored as bfloat16, what it cannot express."""

import dataclasses
import itertools
import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest

from tests.convert.flax.reference import attention, dense, mlp, norm, read_all, same_bits
from tests.convert.outputs import captured
from vit_jax import models
from vit_jax.convert import flax
from vit_jax.convert.flax.big_vision import LAYOUT
from vit_jax.convert.format import check
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import back, into
from vit_jax.io.tensors import Tensor, open_tensors, write_npz
from vit_jax.models import describe
from vit_jax.types import UserError

P, D, K, F, DEPTH, CLASSES, SIZE = 8, 16, 2, 24, 2, 5, 32
G, E = SIZE // P, D // K
VIT = {"patch": P, "width": D, "depth": DEPTH, "heads": K, "mlp_dim": F, "num_classes": CLASSES}
TANH = VIT | {"activation": "gelu_tanh"}


def load(path, about=None):
    """The model of a file, its parameters read, what was found, and the notes of reading."""
    with open_tensors(path) as theirs:
        assert flax.BIG_VISION.matches(theirs.keys()) and not flax.ORIGINAL.matches(theirs.keys())
        found = flax.BIG_VISION.read(theirs, about or {})
        model = describe.build(found.model)
        shapes = describe.shapes(model, found.preprocess.size)
        rules = flax.BIG_VISION.rules(model, found.layout)
        params, notes = into(rules, theirs, shapes, source="file", unused=found.unused)
        params = {name: Tensor.of(tensor.read()) for name, tensor in params.items()}
    return Stored(model, params, found.preprocess, found.class_names, found.output_activation), found, notes


def pretrained(rng, model, size=SIZE, cls_position=False):
    """A model of ours with random parameters, the position of its class token zero unless wanted."""
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in describe.shapes(model, size).items()}
    if "cls" in params and "position/embedding" in params and not cls_position:
        params["position/embedding"][:, 0] = 0
    return Stored(model, {k: Tensor.of(x) for k, x in params.items()}, Preprocess(size))


def theirs_of(ours, layout=LAYOUT):
    """All tensors of a file, read."""
    lazy = back(flax.BIG_VISION.rules(ours.model, layout), ours.params, name="big_vision")
    return {name: tensor.read() for name, tensor in lazy.items()}


# What big_vision's code computes, in float64, on its own names and shapes.


def sincos():
    """MoCo v3's fixed positions: sin and cos of x, then of y, at D / 4 frequencies."""
    omega = 10_000.0 ** -(np.arange(D // 4) / (D // 4 - 1))
    rows = []
    for y, x in itertools.product(range(G), range(G)):
        rows += [np.concatenate([np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)])]
    return np.stack(rows)


def forward(image, w):
    """Logits and every block's output; ``w`` is the nested tree."""
    grid = image.reshape(len(image), G, P, G, P, 3)
    x = np.einsum("bhpwqc,pqcd->bhwd", grid, w["embedding"]["kernel"]).reshape(len(image), G * G, D)
    x = x + w["embedding"]["bias"] + w.get("pos_embedding", sincos())
    if "cls" in w:
        x = np.concatenate([np.broadcast_to(w["cls"], (len(image), 1, D)), x], 1)
    encoder, blocks = w["Transformer"], []
    for i in range(DEPTH):
        b = take(encoder["encoderblock"], i) if "encoderblock" in encoder else encoder[f"encoderblock_{i}"]
        y = norm(x, b["LayerNorm_0"])
        x = x + attention(y, y, b["MultiHeadDotProductAttention_0"])
        x = x + mlp(norm(x, b["LayerNorm_1"]), b["MlpBlock_0"])
        blocks.append(x)
    x = norm(x, encoder["encoder_norm"])
    if "MAPHead_0" in w:
        head = w["MAPHead_0"]
        probe = np.broadcast_to(head["probe"], (len(x), 1, D))
        x = attention(probe, x, head["MultiHeadDotProductAttention_0"])
        x = (x + mlp(norm(x, head["LayerNorm_0"]), head["MlpBlock_0"]))[:, 0]
    else:
        x = x[:, 0] if "cls" in w else x.mean(1)
    x = np.tanh(dense(x, w["pre_logits"])) if "pre_logits" in w else x
    return dense(x, w["head"]), blocks


def take(tree, i):
    return {k: take(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}


def nested(flat):
    tree = {}
    for name, x in flat.items():
        *folders, leaf = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = x
    return tree


def draw(rng, name, x):
    """Random numbers in the place of ``x``, of a size at which activations stay near 1."""
    shape = x.shape[1:] if "/encoderblock/" in name else x.shape
    if name.endswith("scale"):
        return (1 + 0.2 * rng.normal(size=x.shape)).astype(np.float32)
    fan_in = np.prod(shape[:1] if re.search("/(query|key|value)/", name) else shape[:-1])
    return (rng.normal(size=x.shape) * (fan_in**-0.5 if name.endswith("kernel") else 0.2)).astype(np.float32)


KINDS = {
    "gap": ({"pool": "gap"}, LAYOUT),
    "cls": ({"pool": "cls", "pre_logits": 9}, LAYOUT),
    "map": ({"pool": "map"}, LAYOUT),
    "map, scanned": ({"pool": "map"}, dataclasses.replace(LAYOUT, scanned=True)),
    "cls, sin-cos, scanned": ({"positions": "sincos2d"}, dataclasses.replace(LAYOUT, scanned=True)),
    "gap, sin-cos, no prefix": ({"pool": "gap", "positions": "sincos2d"}, dataclasses.replace(LAYOUT, prefix="")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_computes_what_big_vision_computes(rng, tmp_path, kind):
    fields, layout = KINDS[kind]
    model = models.create("vit", **TANH, **fields)
    weights = {name: draw(rng, name, x) for name, x in theirs_of(pretrained(rng, model), layout).items()}
    np.savez(tmp_path / "model.npz", **weights)
    about = {} if model.positions == "learn" else flax.BIG_VISION.write(Stored(model, {}, Preprocess(SIZE))).about
    ours, found, _ = load(tmp_path / "model.npz", about)
    assert (ours.model, found.layout.prefix, found.layout.scanned) == (model, layout.prefix, layout.scanned)
    tree = nested({name: x.astype(np.float64) for name, x in weights.items()})
    image = rng.uniform(-1, 1, size=(2, SIZE, SIZE, 3))
    want, blocks = forward(image, tree.get("params", tree))
    got, our_blocks = captured(ours, image.astype(np.float32))
    assert 0.1 < want.std() < 10
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
    for i, block in enumerate(blocks):
        np.testing.assert_allclose(our_blocks[f"block_{i}"], block, rtol=0, atol=2e-5)
    same_bits(theirs_of(ours, found.layout), weights)


ALL = [
    *({"pool": p, "positions": q, "pre_logits": r, "num_classes": c}
      for p in ("cls", "gap", "map") for q in ("learn", "sincos2d") for r, c in ((None, 0), (None, 5), (7, 3))),
    {"pool": "cls", "activation": "relu", "norm_epsilon": 1e-3, "dropout": 0.5, "heads": 4, "depth": 1},
]  # fmt: skip


@pytest.mark.first(6)
@pytest.mark.parametrize("fields", ALL, ids=lambda fields: " ".join(map(str, fields.values())))
def test_ours_come_back_bit_for_bit(rng, tmp_path, fields):
    ours = pretrained(rng, models.create("vit", **VIT | {"patch": 4} | fields), 12)
    writing = flax.BIG_VISION.write(ours)
    assert writing.layout == LAYOUT
    write_npz(tmp_path / "model.npz", back(flax.BIG_VISION.rules(ours.model, LAYOUT), ours.params, name=""))
    again, *_ = load(tmp_path / "model.npz", json.loads(json.dumps(writing.about)))
    assert again.model == ours.model and again.preprocess == ours.preprocess
    same_bits(read_all(again.params), read_all(ours.params))


def test_a_mixer_has_the_originals_names_behind_the_prefix(rng, tmp_path):
    fields = {"patch": P, "width": D, "depth": 2, "token_dim": 6, "mlp_dim": F, "num_classes": 3}
    ours = pretrained(rng, models.create("mixer", **fields, activation="gelu_tanh"))
    theirs = theirs_of(ours)
    plain = back(flax.ORIGINAL.rules(ours.model, flax.ORIGINAL.write(ours).layout), ours.params, name="npz")
    assert theirs.keys() == {f"params/{name}" for name in plain}
    np.savez(tmp_path / "model.npz", **theirs)
    again, *_ = load(tmp_path / "model.npz")
    assert again.model == ours.model
    same_bits(read_all(again.params), read_all(ours.params))


def test_bfloat16_comes_out_of_the_raw_bytes_that_numpy_makes_of_it(rng, tmp_path):
    ours = pretrained(rng, models.create("vit", **TANH, pool="map"))
    low = {name: x.astype(ml_dtypes.bfloat16) for name, x in theirs_of(ours).items()}
    np.savez(tmp_path / "model.npz", **low, **{"opt/0/count": np.int32(7)})
    with np.load(tmp_path / "model.npz") as stored:
        assert stored["params/pos_embedding"].dtype == np.dtype("V2")
    again, _, notes = load(tmp_path / "model.npz")
    assert again.model == ours.model
    assert notes == [
        "opt/0/count is left out (state of the training)",
        f"{len(low)} of {len(low)} tensors are bfloat16 there, float32 here",
    ]
    same_bits(theirs_of(again), {name: x.astype(np.float32) for name, x in low.items()})


def test_a_position_of_the_class_token_is_added_to_it(rng, tmp_path):
    """big_vision has none; the model stays the same function, bit for bit."""
    ours = pretrained(rng, models.create("vit", **TANH), cls_position=True)
    writing = flax.BIG_VISION.write(ours)
    assert writing.notes == (
        "big_vision has no position for the class token: ours is added to the token, which is the same",
    )
    np.savez(tmp_path / "model.npz", **theirs_of(ours))
    again, *_ = load(tmp_path / "model.npz")
    assert not again.params["position/embedding"].read()[:, 0].any()
    assert again.model == ours.model
    run, image = jax.jit(ours.model.apply), rng.normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_array_equal(*(run({"params": x.tree()}, image) for x in (ours, again)))
    assert flax.BIG_VISION.write(again).notes == ()


def test_what_big_vision_computes_otherwise_is_said(rng):
    model = models.create("vit", **VIT, pool="gap", norm_epsilon=1e-5)
    assert flax.BIG_VISION.write(pretrained(rng, model)).notes == (
        "big_vision computes with activation 'gelu_tanh', this model with 'gelu': its outputs there differ",
        "big_vision computes with norm_epsilon 1e-06, this model with 1e-05: its outputs there differ",
    )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"registers": 2}, "no registers; use --to timm."),
        ({"stem": ()}, "no ResNet stem; use --to npz."),
        ({"stem": (1,), "pre_logits": 3}, "no ResNet stem; use --to npz."),
        ({"stem": (1,), "positions": "sincos2d"}, "no ResNet stem; use --to vit_jax."),
        ({"layer_scale": 0.1, "positions": "sincos2d"}, "no LayerScale; use --to vit_jax."),
        ({"pool": "cls_gap"}, "no class token beside the average (pool 'cls_gap'); use --to vit_jax."),
    ],
)
def test_what_big_vision_has_not_is_refused(fields, says):
    with pytest.raises(UserError, match=re.escape(f"the models of big_vision have {says}")):
        check(models.create("vit", **VIT, **fields), flax.BIG_VISION, ())


@pytest.mark.parametrize(
    ("names", "matches"),
    [
        (["params/Transformer/encoderblock/LayerNorm_0/bias"], True),
        (["Transformer/encoderblock_0/LayerNorm_1/bias", "pos_embedding"], True),
        (["Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias", "Transformer/pos_embedding"], True),
        (["opt/target/Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias"], True),
        (["params/MixerBlock_0/LayerNorm_0/bias"], True),
        (["MixerBlock_0/LayerNorm_0/bias"], False),
        (["Transformer/encoder_norm/bias", "Transformer/posembed_input/pos_embedding"], False),
        (["params/img/Transformer/encoder_norm/bias", "params/txt/x"], True),
        (["params/img/Transformer/encoder_norm/bias"], False),
        (["img/Transformer/posembed_input/pos_embedding", "img/Transformer/encoder_norm/bias", "txt/x", "t"], False),
        (["blocks.0.norm1.weight"], False),
    ],
)
def test_files_are_told_apart_by_their_names(names, matches):
    assert flax.BIG_VISION.matches(names) is matches
