"""Image-text files of big_vision and the original: what their code computes, in NumPy; both ways; golden names."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from tests.convert.cases import rest_slow
from tests.convert.flax.reference import attention, dense, mlp, norm, read_all, same_bits
from tests.convert.golden_trees import golden, unread
from vit_jax import models
from vit_jax.convert import flax, formats, read, write
from vit_jax.convert.flax import big_vision
from vit_jax.convert.flax.image import SIDECAR, upstream
from vit_jax.convert.flax.rules import Layout
from vit_jax.convert.flax.two_tower import ENDS, TOKENIZER, Towers, prefix_of
from vit_jax.convert.format import check
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import back, into
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer import Bytes
from vit_jax.io.tensors import Tensor, open_tensors
from vit_jax.models import describe
from vit_jax.types import UserError

SIZE, P, LENGTH = 21, 7, 6
IMAGE = {"name": "vit", "num_classes": 0, "patch": P, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 26}
TEXT = {"vocab_size": 23, "length": LENGTH, "width": 12, "depth": 3, "heads": 3, "mlp_dim": 18}
TANH = {"activation": "gelu_tanh", "norm_epsilon": 1e-6}
BIDIRECTIONAL = {"causal": False, "pool": "last", **ENDS}
BV = big_vision.LAYOUT
BARE = dataclasses.replace(BV, prefix="")
LINEN = Layout(numbers=(0, 1, 0))


def model_of(image, text, **fields):
    kinds = {"image_tower": {**IMAGE, **TANH, **image}, "text_tower": {**TEXT, **TANH, **BIDIRECTIONAL, **text}}
    return models.create("two_tower", **{"temperature": 10.0, "text_head": "biased", **kinds, **fields})


SIGLIP = {"embed_dim": 16, "image_head": "none", "bias": -10.0}
CASES = {
    "siglip": (model_of({"pool": "map"}, {}, **SIGLIP), Towers("params/", BARE, LINEN)),
    "scanned, two heads, pooled by attention": (
        model_of({"pool": "gap"}, {"pool": "map"}, embed_dim=9, image_head="biased"),
        Towers("opt/target/", *(dataclasses.replace(x, scanned=True) for x in (BARE, LINEN))),
    ),
    "no heads, positions twice": (
        model_of({"pool": "cls"}, {"width": 16, "heads": 2}, embed_dim=16, image_head="none", text_head="none"),
        Towers("params/", BARE, LINEN, twice=True),
    ),
    "lit": (model_of({"pool": "cls"}, {}, embed_dim=16, image_head="none"), Towers("", Layout(), LINEN)),
    "lit, old names": (
        model_of({"pool": "cls"}, {}, embed_dim=7, image_head="biased"),
        Towers("", Layout(), Layout()),
    ),
}


def load(path, about=None):
    """The model of a file, its parameters read, and what was found."""
    with open_tensors(path) as theirs:
        (fmt,) = (f for f in formats.FORMATS.values() if f.matches(theirs.keys()))
        found = fmt.read(theirs, about or {})
        model = describe.build(found.model)
        shapes = describe.shapes(model, found.preprocess.size)
        rules = fmt.rules(model, found.layout)
        params, notes = into(rules, theirs, shapes, source="file", unused=found.unused)
        params = {name: Tensor.of(tensor.read()) for name, tensor in params.items()}
    return (
        Stored(model, params, found.preprocess, output_activation=found.output_activation, encoder=found.encoder),
        found,
        fmt,
        notes,
    )


def drawn(model, size=SIZE):
    """``model`` with random parameters, the position of its class token zero."""
    rng = np.random.default_rng(0)
    params = {}
    for name, shape in describe.shapes(model, size).items():
        scale = np.prod(shape[:-1]) ** -0.5 if name.endswith("kernel") else 0.3
        params[name] = (name.endswith("scale") + scale * rng.normal(size=shape)).astype(np.float32)
    if "image_tower/cls" in params:
        params["image_tower/position/embedding"][:, 0] = 0
    return Stored(model, {k: Tensor.of(x) for k, x in params.items()}, Preprocess(size))


def theirs_of(ours, towers):
    """All tensors of a file, read; the doubled positions are two random tables."""
    lazy = back(flax.ORIGINAL.rules(ours.model, towers), ours.params, name="file")
    arrays = {name: tensor.read() for name, tensor in lazy.items()}
    if towers.twice:
        for name in arrays:
            if name.startswith(f"{towers.prefix}txt/") and name.endswith("pos_embedding"):
                arrays[name] = np.random.default_rng(len(name)).normal(size=arrays[name].shape).astype(np.float32)
    return arrays


# What the projects' code computes, in float64, on their own names and shapes.


def part(block, kind, at):
    """The ``at``-th module of a class, whatever it is numbered."""
    return block[sorted(name for name in block if name.startswith(kind))[at]]


def encode(x, w, depth):
    for i in range(depth):
        b = w.get(f"encoderblock_{i}") or jax.tree.map(lambda leaf, i=i: leaf[i], w["encoderblock"])
        y = norm(x, part(b, "LayerNorm", 0))
        x = x + attention(y, y, part(b, "MultiHead", 0))
        x = x + mlp(norm(x, part(b, "LayerNorm", 1)), part(b, "MlpBlock", 0))
    return norm(x, w["encoder_norm"])


def pooled(x, w):
    probe = np.broadcast_to(w["probe"], (len(x), 1, x.shape[-1]))
    x = attention(probe, x, w["MultiHeadDotProductAttention_0"])
    return (x + mlp(norm(x, w["LayerNorm_0"]), w["MlpBlock_0"]))[:, 0]


def embed_image(image, w):
    b, g = len(image), SIZE // P
    grid = image.reshape(b, g, P, g, P, 3)
    x = np.einsum("bhpwqc,pqcd->bhwd", grid, w["embedding"]["kernel"]).reshape(b, g * g, -1) + w["embedding"]["bias"]
    cls = [np.broadcast_to(w["cls"], (b, 1, x.shape[-1]))] if "cls" in w else []
    if "pos_embedding" in w:
        x = np.concatenate([*cls, x + w["pos_embedding"]], 1)
    else:
        x = np.concatenate([*cls, x], 1) + w["Transformer"]["posembed_input"]["pos_embedding"]
    x = encode(x, w["Transformer"], IMAGE["depth"])
    x = pooled(x, w["MAPHead_0"]) if "MAPHead_0" in w else x[:, 0] if cls else x.mean(1)
    return dense(x, w["head"]) if "head" in w else x


def embed_text(text, w):
    x = w["Embed_0"]["embedding"][text] + w["pos_embedding"] + w["Encoder_0"].get("pos_embedding", 0)
    x = encode(x, w["Encoder_0"], TEXT["depth"])
    x = pooled(x, w["MAPHead_0"]) if "MAPHead_0" in w else x[:, -1]
    return dense(x, w["head"]) if "head" in w else x


def forward(image, text, w):
    """Image embeddings, text embeddings, logits; ``w`` is the nested tree."""
    a, b = (x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-8)
            for x in (embed_image(image, w["img"]), embed_text(text, w["txt"])))  # fmt: skip
    return a, b, np.exp(w["t"]) * a @ b.T + w.get("b", 0)


def nested(flat, prefix):
    tree = {}
    for name, x in flat.items():
        *folders, leaf = name.removeprefix(prefix).split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = x.astype(np.float64)
    return tree


def ours_of(pretrained, image, text):
    out = jax.tree.map(np.asarray, jax.jit(pretrained.model.apply)({"params": pretrained.tree()}, image, text))
    return out.image, out.text, out.scale * out.image @ out.text.T + out.bias


def inputs():
    rng = np.random.default_rng(1)
    text = rng.integers(2, TEXT["vocab_size"], (4, LENGTH)).astype(np.int32)
    text[1, 3:] = text[2, 1:] = 1
    return rng.uniform(-1, 1, size=(3, SIZE, SIZE, 3)).astype(np.float32), text


@pytest.mark.parametrize("case", CASES)
def test_a_file_is_read_and_comes_back(tmp_path, case):
    model, towers = CASES[case]
    weights = theirs_of(drawn(model), towers)
    np.savez(tmp_path / "model.npz", **weights, chrono=np.int32(3))
    ours, found, fmt, notes = load(tmp_path / "model.npz")
    if towers.prefix:
        assert any("chrono is left out (state of the training)" in note for note in notes)
    assert fmt.name == ("npz" if "lit" in case else "big_vision")
    assert (ours.model, found.layout) == (model, towers)
    assert found.output_activation == ("sigmoid" if case == "siglip" else "softmax")
    assert any("texts are assumed to end in token 1" in note for note in found.notes)
    pooled = any("pooled at their last token" in note and "'pool': 'first'" in note for note in found.notes)
    assert pooled == (model.text_tower.pool != "map")
    assert found.preprocess == upstream(SIZE)
    if not towers.twice:
        same_bits(theirs_of(ours, found.layout), weights)
    else:
        both = [x for name, x in weights.items() if "txt/" in name and name.endswith("pos_embedding")]
        np.testing.assert_array_equal(ours.params["text_tower/position/embedding"].read(), both[0] + both[1])


@pytest.mark.parametrize(("patch", "size", "rest"), [(14, 378, 6), (14, 224, 0), (16, 384, 0), (14, 392, 0)])
def test_so400m_has_images_of_384_pixels(patch, size, rest):
    """Of which 27 patches of 14 leave the last six out."""
    model = model_of({"pool": "map", "patch": patch}, {}, **SIGLIP)
    lazy = back(flax.BIG_VISION.rules(model, CASES["siglip"][1]), unread(describe.shapes(model, size)), name="file")
    found = flax.BIG_VISION.read(unread({name: tensor.shape for name, tensor in lazy.items()}), {})
    assert (found.preprocess.size, found.preprocess.frame.rest) == (size, rest)
    assert any("384 px are assumed" in note for note in found.notes) == (rest > 0)


SHOWN = rest_slow(CASES, "siglip", "lit", "scanned, two heads, pooled by attention")


@pytest.mark.first(1)
@pytest.mark.parametrize("case", SHOWN)
def test_a_file_computes_what_its_project_computes(tmp_path, case):
    model, towers = CASES[case]
    weights = theirs_of(drawn(model), towers)
    np.savez(tmp_path / "model.npz", **weights)
    ours, *_ = load(tmp_path / "model.npz")
    image, text = inputs()
    want = forward(image.astype(np.float64), text, nested(weights, towers.prefix))
    for a, b in zip(ours_of(ours, image, text), want, strict=True):
        assert a.shape == b.shape and np.ptp(b) > 0.3
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


OTHER = model_of(
    {"positions": "sincos2d", "activation": "gelu", "pool": "gap"}, {"norm_epsilon": 1e-3}, embed_dim=5,
    image_head="biased",
)  # fmt: skip
MIXER = {"name": "mixer", "num_classes": 0, "patch": P, "width": 16, "depth": 1, "token_dim": 5, "mlp_dim": 8}
WRITTEN = {
    "siglip": ("big_vision", model_of({"pool": "map"}, {}, **SIGLIP), []),
    "first token": (
        "big_vision",
        model_of({"pool": "cls"}, {"pool": "first"}, embed_dim=5, image_head="biased"),
        ["set pool_type='first' there"],
    ),
    "another activation": (
        "big_vision",
        OTHER,
        ["activation 'gelu_tanh', this model with 'gelu'", "norm_epsilon 1e-06, this model with 0.001"],
    ),
    "lit": ("npz", model_of({"pool": "cls"}, {}, embed_dim=16, image_head="none", lock="image"), []),
    "mixer": (
        "npz",
        OTHER.clone(
            image_tower=models.create(**MIXER, **TANH),
            text_tower=OTHER.text_tower.clone(norm_epsilon=1e-6),
            embed_dim=16,
            image_head="none",
        ),
        [],
    ),
}


@pytest.mark.first(4)
@pytest.mark.parametrize("case", WRITTEN)
@pytest.mark.parametrize("encoder", [None, TextCodec(Bytes(), LENGTH)])
def test_ours_come_back_bit_for_bit(tmp_path, case, encoder):
    to, model, noted = WRITTEN[case]
    if encoder is not None:
        t = encoder.tokenizer
        tower = model.text_tower.clone(vocab_size=t.vocab_size, end_id=t.end_id, pad_id=t.pad_id)
        model = model.clone(text_tower=tower)
    ours = dataclasses.replace(drawn(model), encoder=encoder, output_activation="sigmoid")
    notes = write.save(ours, tmp_path / "model.npz", to)
    assert len(notes) == len(noted) and all(a in b for a, b in zip(noted, notes, strict=True)), notes
    with read.load(tmp_path / "model.npz") as again:
        assert (again.model, again.preprocess, again.output_activation) == (model, ours.preprocess, "sigmoid")
        assert again.encoder == encoder
        same_bits(read_all(again.params), read_all(ours.params))


def test_heads_without_bias_get_zeros(tmp_path):
    ours = drawn(model_of({"pool": "map"}, {}, embed_dim=5, text_head="linear", image_head="linear"))
    notes = write.save(ours, tmp_path / "model.npz", "big_vision")
    assert [note.split(":")[0] for note in notes] == [
        f"the {side} head has no bias, those of big_vision have one" for side in ("image", "text")
    ]
    with read.load(tmp_path / "model.npz") as again:
        assert any("says text_head='linear', the tensors say 'biased'" in note for note in again.notes)
        for a, b in zip(ours_of(ours, *inputs()), ours_of(again, *inputs()), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("to", "image", "text", "fields", "says"),
    [
        ("big_vision", {}, {"causal": True, "pool": "end"}, {}, "text towers of big_vision have no causal=True and no"),
        ("big_vision", {}, {"pool": "gap"}, {}, "no pool='gap'; use --to vit_jax"),
        ("big_vision", {}, {"layer_scale": 0.1}, {}, "no layer_scale=0.1"),
        ("big_vision", {"pre_norm": True}, {}, {}, "no norm before the first block"),
        ("big_vision", {"patch_bias": False}, {}, {}, "no patch embedding without a bias"),
        ("big_vision", {"registers": 2}, {}, {}, "no registers"),
        ("npz", {}, {}, {"bias": -1.0}, "no bias of the logits; use --to big_vision"),
        ("npz", {}, {"pool": "first"}, {}, "no text tower with pool='first'; use --to big_vision"),
        ("npz", {"pool": "map"}, {}, {}, "no attention pooling"),
    ],
)
def test_what_they_have_not_is_refused(to, image, text, fields, says):
    model = model_of({"pool": "cls", **image}, text, embed_dim=16, image_head="none", **fields)
    with pytest.raises(UserError, match=re.escape(says)):
        check(model, formats.FORMATS[to], ())


def names_of(case):
    model, towers = CASES[case]
    shapes = describe.shapes(model, SIZE)
    theirs = back(flax.ORIGINAL.rules(model, towers), unread(shapes), name="file")
    return {name: tensor.shape for name, tensor in theirs.items()}


def test_bert_is_a_sentence():
    names = {name: shape for name, shape in names_of("lit").items() if not name.startswith("txt/E")}
    names["txt/BertEncoder_0/embedder/embedders_token_ids/embedding"] = (28996, 768)
    with pytest.raises(UserError, match="the text tower is a BERT, as of LiT-B16B"):
        flax.ORIGINAL.read(unread(names), {})


@pytest.mark.parametrize(
    "lost", ["txt/Embed_0/embedding", "txt/pos_embedding", "txt/Encoder_0/encoderblock_0/MlpBlock_0/Dense_0/kernel",
             "img/embedding/kernel"]
)  # fmt: skip
def test_what_tells_the_size_must_be_there(lost):
    names = {name: shape for name, shape in names_of("siglip").items() if not name.endswith(lost)}
    with pytest.raises(UserError, match=f"the weights lack {lost[4:]}"):
        flax.BIG_VISION.read(unread(names), {})


@pytest.mark.parametrize("lost", ["params/t", "params/img/cls", "params/txt/head/bias"])
def test_what_else_is_lost_is_named(lost):
    model, _ = CASES["no heads, positions twice" if "cls" in lost else "siglip"]
    names = {n: s for n, s in names_of("siglip").items() if n != lost}
    found = flax.BIG_VISION.read(unread(names), {})
    if "cls" in lost:
        return
    with pytest.raises(UserError, match=f"{lost} is missing"):
        into(flax.ORIGINAL.rules(model, found.layout), unread(names), describe.shapes(model, SIZE), source="file")


@pytest.mark.parametrize(
    "said",
    [
        model_of({"pool": "map"}, {}, **{**SIGLIP, "bias": None}),
        models.create("vit", **{k: v for k, v in IMAGE.items() if k != "name"}),
        models.create("coca", image_tower=IMAGE, text_tower=TEXT),
    ],
)
def test_a_sidecar_of_another_model_is_refused(said):
    about = {SIDECAR: {"model": describe.describe(said), "preprocess": {"size": SIZE}}}
    with pytest.raises(UserError, match=f"vit_jax.json describes a {type(said).__name__}"):
        flax.BIG_VISION.read(unread(names_of("siglip")), json.loads(json.dumps(about)))


def test_the_tensors_win_over_the_sidecar():
    model, _ = CASES["siglip"]
    other = model.clone(text_tower=model.text_tower.clone(mlp_dim=99, dropout=0.25), embed_dim=3)
    about = {SIDECAR: {"model": describe.describe(other), "preprocess": {"size": 28}}}
    found = flax.BIG_VISION.read(unread(names_of("siglip")), json.loads(json.dumps(about)))
    assert describe.build(found.model) == model.clone(text_tower=model.text_tower.clone(dropout=0.25))
    assert list(found.notes) == [
        "vit_jax.json says embed_dim=3, the tensors say 16, which is taken",
        "vit_jax.json says text_tower.mlp_dim=99, the tensors say 18, which is taken",
        "vit_jax.json says size=28, the tensors say 21, which is taken",
    ]


def test_names():
    assert prefix_of(names_of("siglip")) == "params/" and prefix_of(names_of("lit")) == ""
    assert prefix_of(["img/a"]) is None and prefix_of(["img/a", "params/txt/b"]) is None
    assert TOKENIZER.endswith(".json")  # what tells the JSON beside weights from a configuration


GOLDEN = {
    "SigLIP B/16": ("siglip_vit_b16", "big_vision", {**TANH, "pool": "map"}, {}),
    "LiT-L16S": ("lit_vit_b16", "npz", {**TANH, "name": "vit_l16", "num_classes": 0},
                 {"vocab_size": 16000, "length": 16, "width": 384, "heads": 6, "mlp_dim": 1536, **BIDIRECTIONAL}),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_names_and_shapes_are_the_projects(name):
    row, to, image, text = GOLDEN[name]
    fields = {"image_tower": image, "text_tower": {**TANH, **text}}
    fields |= {"embed_dim": 1024, "lock": "none"} if "LiT" in name else {}
    want, fmt = golden("two_tower_tree", name), formats.FORMATS[to]
    assert [f.name for f in formats.FORMATS.values() if f.matches(want.keys())] == [to]
    found = fmt.read(unread(want), {})
    model = describe.build(found.model)
    described = (
        describe.build(describe.describe(models.create(row)), f"{row}") if not fields else models.create(row, **fields)
    )
    assert model == described
    assert found.preprocess.size == 224
    shapes = describe.shapes(model, 224)
    ours, _ = into(fmt.rules(model, found.layout), unread(want), shapes, source="file")
    assert {path: tensor.shape for path, tensor in ours.items()} == shapes
    theirs = back(fmt.rules(model, found.layout), unread(shapes), name="file")
    assert {name: tensor.shape for name, tensor in theirs.items()} == want
