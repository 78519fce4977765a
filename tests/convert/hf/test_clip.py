"""CLIP and SigLIP against transformers' own models: embeddings and logits, and the way back bit for bit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert import torch_reference
from tests.convert.cases import rest_slow
from vit_jax import models
from vit_jax.convert import hf, read, verify, write
from vit_jax.convert.hf import tokenizer
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import back, into
from vit_jax.data.framing import Framing
from vit_jax.data.text import TextCodec
from vit_jax.data.tokenizer import Bytes, Clip
from vit_jax.io.tensors import Tensor, open_tensors, write_safetensors
from vit_jax.layers.embed import resize_positions
from vit_jax.models import describe

VISION = {"hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 4,
          "image_size": 21, "patch_size": 7}  # fmt: skip
TEXT = {"vocab_size": 31, "hidden_size": 18, "intermediate_size": 22, "num_hidden_layers": 3, "num_attention_heads": 3,
        "max_position_embeddings": 9, "bos_token_id": 29, "eos_token_id": 30, "pad_token_id": 0}  # fmt: skip
QUICK = {"hidden_act": "quick_gelu"}
ERF = {"hidden_act": "gelu", "layer_norm_eps": 1e-3}
TANH = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-2}
CASES = {
    "clip": ("CLIP", QUICK, QUICK, {"projection_dim": 13}),
    "clip, gelu": ("CLIP", ERF, {**QUICK, "eos_token_id": 5}, {"projection_dim": 24}),
    "clip, the largest token": ("CLIP", QUICK, {**ERF, "eos_token_id": 2}, {"projection_dim": 11}),
    "metaclip_2": ("MetaClip2", QUICK, {**QUICK, "eos_token_id": 2}, {"projection_dim": 13}),
    "siglip": ("Siglip", {}, {"projection_size": 20}, {}),
    "siglip, other activations": ("Siglip", TANH, {**ERF, "projection_size": 20, "eos_token_id": 1}, {}),
}
FIELDS = {
    "clip": {
        "image_tower": {"pool": "cls", "patch_bias": False, "pre_norm": True, "activation": "quick_gelu"},
        "text_tower": {"end_id": 30, "pad_id": 7},
        "embed_dim": 11,
    },
    "metaclip_2": {
        "image_tower": {"pool": "cls", "patch_bias": False, "pre_norm": True},
        "text_tower": {"end_id": 2, "pad_id": 1, "activation": "quick_gelu"},
        "embed_dim": 11,
    },
    "siglip": {
        "image_tower": {"pool": "map", "activation": "gelu_tanh", "norm_epsilon": 1e-4},
        "text_tower": {"end_id": 2, "pad_id": 0, "causal": False, "pool": "last", "activation": "relu"},
        "embed_dim": 20,
        "image_head": "none",
        "text_head": "biased",
        "temperature": 10.0,
        "bias": -10.0,
    },
}
CLIP = TextCodec(Clip("a b\nab c</w>"), 9)
PREPROCESS = Preprocess(21, 0.75, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), frame=Framing(rounding="transformers"))


def randomise(torch, module, std=0.3):
    """Every parameter is drawn, so that none can be mistaken for another."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, x in module.named_parameters():
            x.copy_(torch.randn(x.shape) * std + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return module.eval()


def built(torch, transformers, case, vision=VISION, text=TEXT):
    name, image_settings, text_settings, more = CASES[case]
    parts = {"vision_config": {**vision, **image_settings}, "text_config": {**text, **text_settings}}
    config = getattr(transformers, f"{name}Config")(**parts, **more, attn_implementation="eager")
    return getattr(transformers, f"{name}Model")(config)


@pytest.fixture(scope="module")
def peer(torch, transformers, tmp_path_factory):
    """``peer(case) -> (module, folder)``: a model with random weights and what ``save_pretrained`` makes of it."""
    transformers.utils.logging.disable_progress_bar()
    made = {}

    def make(case):
        if case not in made:
            folder = tmp_path_factory.mktemp("peer")
            module = randomise(torch, built(torch, transformers, case))
            module.save_pretrained(folder)
            made[case] = module, folder
        return made[case]

    return make


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_a_side_that_patches_do_not_divide(name, torch, transformers, tmp_path):
    """So400m/14 at 384 px: the whole of it is resized, and the convolution leaves the last rows and columns out."""
    case = next(case for case, row in CASES.items() if row[0].lower() == name)
    module = randomise(torch, built(torch, transformers, case, {**VISION, "image_size": 27, "patch_size": 7}))
    module.save_pretrained(tmp_path / "there")
    kind = {"siglip": "Siglip", "clip": "CLIP"}[name]
    size = {"height": 27, "width": 27} if name == "siglip" else {"shortest_edge": 27}
    content = {"image_processor_type": f"{kind}ImageProcessor", "size": size, "crop_size": 27}
    (tmp_path / "there/preprocessor_config.json").write_text(json.dumps(content))
    with read.load(tmp_path / "there") as found:
        assert (found.preprocess.size, found.preprocess.frame.rest) == (21, 6)
        rows = verify.verify(found, [tmp_path / "there"])
        assert rows[0].output == "pixel" and all(row.ok for row in rows), rows
        write.save(found, tmp_path / "again", "hf")
        assert json.loads((tmp_path / "again/config.json").read_text())["vision_config"]["image_size"] == 27
        with read.load(tmp_path / "again") as again:
            assert again.preprocess == found.preprocess
        assert all(row.ok for row in verify.verify(found, [tmp_path / "again"]))


def load(folder):
    """As ``read.load`` does, and what else was found: the model, reading, their tensors."""
    about = {p.name: json.loads(p.read_text()) for p in folder.glob("*config.json")}
    about |= {p.name: p for p in folder.iterdir() if p.name in ("merges.txt", "tokenizer.json", "spiece.model")}
    with open_tensors(folder / "model.safetensors") as tensors:
        theirs = in_memory(tensors)
    return *converted(theirs, about), theirs


def in_memory(tensors):
    return {name: Tensor.of(leaf.read()) for name, leaf in tensors.items()}


def converted(theirs, about):
    assert hf.FORMAT.matches(theirs)
    found = hf.FORMAT.read(theirs, about)
    model = describe.build(found.model)
    shapes = describe.shapes(model, found.preprocess.size)
    rules = hf.FORMAT.rules(model, found.layout)
    params, _ = into(rules, theirs, shapes, source="theirs", unused=found.unused)
    return Stored(
        model, params, found.preprocess, output_activation=found.output_activation, encoder=found.encoder
    ), found


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert a[name].shape == b[name].shape, name
        np.testing.assert_array_equal(a[name].read(), b[name].read(), err_msg=name)


def tokens(end=30):
    """Texts of every kind: the end token early, at the end, several times, not at all; ids above it; full and empty."""
    rng = np.random.default_rng(3)
    texts = rng.integers(6, 29, (8, 9)).astype(np.int32)
    for row, at in zip(texts, (8, 4, 1, 0), strict=False):
        row[at:] = 0
        row[at] = 30
    texts[4, [2, 5]] = 30
    texts[5, 3:] = 30
    texts[6, 4], texts[7, [3, 6]] = 5, 5
    return np.where(texts == 30, end, texts)


def theirs_of(torch, module, images, texts):
    with torch.no_grad():
        out = module(
            pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
            input_ids=torch.from_numpy(texts.astype(np.int64)),
        )
    return [x.numpy() for x in (out.image_embeds, out.text_embeds, out.logits_per_image)]


def ours_of(pretrained, images, texts):
    params = {"params": pretrained.tree(jnp.asarray)}
    out = jax.jit(pretrained.model.apply)(params, jnp.asarray(images), jnp.asarray(texts))
    return [np.asarray(x) for x in (out.image, out.text, out.scale * out.image @ out.text.T + out.bias)]


def agree(torch, module, pretrained, texts):
    """Within 2e-5, or that part of the largest logit; gives the largest difference."""
    size = pretrained.preprocess.size
    images = np.random.default_rng(0).standard_normal((3, size, size, 3), np.float32)
    want, got = theirs_of(torch, module, images, texts), ours_of(pretrained, images, texts)
    for name, a, b in zip(("image", "text", "logit"), want, got, strict=True):
        assert a.shape == b.shape and np.ptp(a) > 0.1, name
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-5 * max(1, np.abs(a).max()), err_msg=name)
    return max(np.abs(a - b).max() for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("case", rest_slow(CASES, "clip", "metaclip_2", "siglip"))
def test_embeddings_and_logits_agree(torch, peer, case):
    module, folder = peer(case)
    pretrained, *_ = load(folder)
    legacy = case == "clip, the largest token"  # is only another token where a text lacks its end
    end = 2 if case == "metaclip_2" else 30
    agree(torch, module, pretrained, tokens(end)[: 6 if legacy else None])
    assert case != "metaclip_2" or pretrained.model.text_tower.end_id == end
    if "siglip" in case:  # a shorter text is pooled where it ends
        agree(torch, module, pretrained, tokens()[:, :5])


@pytest.mark.parametrize("case", CASES)
def test_the_way_back_is_the_file(peer, case):
    _, folder = peer(case)
    pretrained, found, theirs = load(folder)
    same(back(hf.FORMAT.rules(pretrained.model, found.layout), pretrained.params, name="hf"), theirs)
    assert found.output_activation == ("sigmoid" if "siglip" in case else "softmax")
    assert pretrained.params["logit_scale"].shape == ()


def drawn(kind, encoder=None):
    """A model of ours with random weights."""
    sizes = {"image_tower": {"name": "vit", "num_classes": 0, "width": 20, "heads": 4, "mlp_dim": 28, "patch": 7},
             "text_tower": {"vocab_size": 31, "length": 9, "width": 18, "heads": 3, "mlp_dim": 22}}  # fmt: skip
    fields = {**FIELDS[kind], **{k: {**v, "depth": 2, **FIELDS[kind][k]} for k, v in sizes.items()}}
    if encoder is not None:
        t = encoder.tokenizer
        fields["text_tower"] |= {"vocab_size": t.vocab_size, "end_id": t.end_id, "pad_id": t.pad_id}
    model = models.create("two_tower", **fields)
    rng = np.random.default_rng(0)
    params = {}
    for path, shape in describe.shapes(model, 21).items():
        centre = 1.0 if path.endswith("/scale") else 0.0
        params[path] = Tensor.of((centre + 0.3 * rng.standard_normal(shape)).astype(np.float32))
    return Stored(
        model, params, PREPROCESS, output_activation="sigmoid" if kind == "siglip" else "softmax", encoder=encoder
    )


@pytest.mark.parametrize("kind", FIELDS)
def test_what_is_written_loads_in_transformers(torch, transformers, tmp_path, kind):
    pretrained = drawn(kind)
    notes = write.save(pretrained, tmp_path / "out", "hf")
    assert notes == ["no tokenizer is known, none is written"]
    transformers.utils.logging.disable_progress_bar()
    module, report = transformers.AutoModel.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert type(module).__name__ == {"clip": "CLIPModel", "metaclip_2": "MetaClip2Model", "siglip": "SiglipModel"}[kind]
    assert not any(report.values()), report
    agree(torch, module.eval(), pretrained, tokens())
    run = hf.FORMAT.peer(tmp_path / "out" / "model.safetensors", pretrained.model)
    images = np.random.default_rng(0).standard_normal((3, 21, 21, 3), np.float32)
    for a, b in zip(theirs_of(torch, module, images, tokens()), run(images, tokens()).values(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", FIELDS)
def test_what_is_written_computes_what_transformers_computes(kind):
    """As transformers' code does, without transformers."""
    pretrained, texts = drawn(kind), tokens()
    theirs = back(hf.FORMAT.rules(pretrained.model, kind), pretrained.params, name="hf")
    images = np.random.default_rng(0).standard_normal((3, 21, 21, 3), np.float32)
    model = pretrained.model
    want = torch_reference.hf_pair(images, texts, torch_reference.wide(theirs), model.image_tower, model.text_tower)
    for a, b in zip(want, ours_of(pretrained, images, texts), strict=True):
        assert np.ptp(a) > 0.1
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-5 * max(1, np.abs(a).max()))


@pytest.mark.parametrize(
    ("kind", "encoder"),
    [(kind, encoder) for kind in ("clip", "siglip") for encoder in (None, CLIP, TextCodec(Bytes(), 9))],
)
def test_ours_there_and_back(tmp_path, kind, encoder):
    pretrained = drawn(kind, encoder)
    write.save(pretrained, tmp_path / "out", "hf")
    with read.load(tmp_path / "out") as again:
        assert (again.model, again.preprocess, again.output_activation) == (
            pretrained.model,
            PREPROCESS,
            pretrained.output_activation,
        )
        assert again.encoder == encoder
        same(again.params, pretrained.params)


def test_old_files_count_their_positions(peer):
    _, folder = peer("clip")
    pretrained, found, theirs = load(folder)
    counted = {f"{tower}_model.embeddings.position_ids" for tower in ("vision", "text")}
    old = theirs | {name: Tensor.of(np.arange(9)[None]) for name in counted}
    again, found = converted(old, {"config.json": json.loads((folder / "config.json").read_text())})
    same(again.params, pretrained.params)
    assert set(found.unused) == counted


def test_an_old_configuration_that_says_things_twice(torch, transformers, peer, tmp_path):
    """The second section wins with its defaults, also over what the first says."""
    _, folder = peer("clip, gelu")
    settings = json.loads((folder / "config.json").read_text())
    sizes = {k: v for k, v in TEXT.items() if not k.endswith("token_id")}
    vision = {k: v for k, v in VISION.items() if k != "num_attention_heads"} | {"num_attention_heads": 2}
    twice = settings | {"text_config_dict": sizes, "vision_config_dict": vision}
    for name, content in {"config.json": twice}.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    module = transformers.CLIPModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    pretrained, *_ = load(tmp_path)
    assert pretrained.model.image_tower.heads == 2 and pretrained.model.image_tower.activation == "quick_gelu"
    assert pretrained.model.text_tower.end_id == 49407
    agree(torch, module, pretrained, tokens())


def test_a_file_alone(peer):
    _, folder = peer("siglip")
    with open_tensors(folder / "model.safetensors") as tensors:
        theirs = in_memory(tensors)
    found, reading = converted(theirs, {})
    want, *_ = load(folder)
    assert found.model.image_tower.heads == 1 and found.model.text_tower.activation == "gelu_tanh"
    assert (found.model.text_tower.end_id, found.model.text_tower.pad_id) == (1, 1)
    same({k: v for k, v in found.params.items() if "attention" not in k},
         {k: v for k, v in want.params.items() if "attention" not in k})  # fmt: skip
    assert (found.preprocess.size, found.preprocess.mean) == (21, (0.5, 0.5, 0.5))
    text = "\n".join((*reading.assumed.values(), *reading.notes))
    for part in ("of its image tower 1 heads are assumed", "gelu_pytorch_tanh and layer norms with epsilon 1e-06",
                 "no preprocessor_config.json", "no tokenizer lies beside"):  # fmt: skip
        assert part in text


def test_the_peer_of_a_file_alone_has_our_settings(transformers, tmp_path):
    pretrained = drawn("siglip")
    tensors = back(hf.FORMAT.rules(pretrained.model, "siglip"), pretrained.params, name="hf")
    write_safetensors(tmp_path / "model.safetensors", tensors, {"format": "pt"})
    run = hf.FORMAT.peer(tmp_path / "model.safetensors", pretrained.model)
    images = np.random.default_rng(0).standard_normal((2, 21, 21, 3), np.float32)
    for a, b in zip(run(images, tokens()).values(), ours_of(pretrained, images, tokens()), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def test_positions_are_resized_as_transformers_does(torch, peer):
    for case in ("clip", "siglip"):
        module, _ = peer(case)
        embeddings = module.vision_model.embeddings
        table_, cls = embeddings.position_embedding.weight.detach().numpy()[None], int(case == "clip")
        for side in (2, 7):
            with torch.no_grad():
                want = embeddings.interpolate_pos_encoding(torch.zeros(1, side**2 + cls, 20), 7 * side, 7 * side)
            got = resize_positions(table_, (3, 3), (side, side), cls, hf.FORMAT.resize)
            np.testing.assert_allclose(got, want.numpy(), atol=1e-6)


def test_the_tokenizer_decides_what_ends_and_fills_up(peer):
    _, folder = peer("siglip")
    with open_tensors(folder / "model.safetensors") as tensors:
        theirs = in_memory(tensors)
    settings = json.loads((folder / "config.json").read_text())
    own = tokenizer.write(TextCodec(Bytes(), 9), "siglip")[0]
    found = hf.FORMAT.read(theirs, {"config.json": settings, **own})
    assert found.encoder == TextCodec(Bytes(), 9)
    assert (found.model["text_tower"]["end_id"], found.model["text_tower"]["pad_id"]) == (2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["clip", "siglip"])
def test_full_size(torch, transformers, tmp_path, case):
    """CLIP B/32 and SigLIP B/16 at their usual sizes."""
    name = CASES[case][0]
    config = getattr(transformers, f"{name}Config")(attn_implementation="eager")
    module = randomise(torch, getattr(transformers, f"{name}Model")(config), 0.02)
    with torch.no_grad():
        module.logit_scale.fill_(2.6 if case == "clip" else 4.7)
    module.save_pretrained(tmp_path)
    pretrained, found, theirs = load(tmp_path)
    tower = pretrained.model.text_tower
    texts = np.random.default_rng(0).integers(2, tower.vocab_size - 2, (4, tower.length)).astype(np.int32)
    texts[:, 20:] = tower.end_id
    gap = agree(torch, module, pretrained, texts)
    print(f"{case}: max difference {gap:.2e}")
    same(back(hf.FORMAT.rules(pretrained.model, found.layout), pretrained.params, name="hf"), theirs)
