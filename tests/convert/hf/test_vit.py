"""Every family against transformers' own model: numbers of every block, and the way back bit for bit."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from tests.convert import torch_reference
from tests.convert.cases import rest_slow
from tests.convert.outputs import captured
from vit_jax import models
from vit_jax.convert import hf, read, rules, verify, write
from vit_jax.convert.hf import vit, vit_config
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.data.framing import Framing
from vit_jax.io.tensors import Tensor, open_tensors, write_safetensors
from vit_jax.layers.embed import resize_positions
from vit_jax.models import describe

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
VIT = {**SIZE, "intermediate_size": 48}
DINO = {**SIZE, "mlp_ratio": 2}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
           "decoder_intermediate_size": 16}  # fmt: skip
CASES = {
    "vit": ("ViTForImageClassification", {**VIT, "num_labels": 5, "layer_norm_eps": 1e-3}, {}),
    "vit with pooler": ("ViTModel", {**VIT, "pooler_output_size": 24, "hidden_act": "gelu_new"}, {}),
    "bare vit": ("ViTModel", {**VIT, "hidden_act": "quick_gelu"}, {"add_pooling_layer": False}),
    "vit without biases": ("ViTForImageClassification", {**VIT, "qkv_bias": False, "hidden_act": "relu"}, {}),
    "deit": ("DeiTForImageClassificationWithTeacher", {**VIT, "num_labels": 5}, {}),
    "bare deit": ("DeiTModel", {**VIT, "hidden_act": "gelu_new"}, {"add_pooling_layer": False}),
    "mae": ("ViTMAEForPreTraining", {**VIT, "mask_ratio": 0.0, **DECODER}, {}),
    "bare mae": ("ViTMAEModel", {**VIT, "mask_ratio": 0.0}, {}),
    "gated dinov2": ("Dinov2ForImageClassification", {**DINO, "use_swiglu_ffn": True, "num_labels": 5}, {}),
    "gated registers": ("Dinov2WithRegistersModel", {**DINO, "use_swiglu_ffn": True, "num_register_tokens": 2}, {}),
    "bare dinov2": ("Dinov2Model", {**DINO, "layer_norm_eps": 1e-3}, {}),
    "dinov2": ("Dinov2ForImageClassification", {**DINO, "num_labels": 5}, {}),
    "bare registers": ("Dinov2WithRegistersModel", {**DINO, "num_register_tokens": 3}, {}),
    "registers": ("Dinov2WithRegistersForImageClassification", {**DINO, "num_labels": 5}, {}),
}
SWIGLU = {"ffn": "gated", "activation": "silu"}
OURS = {
    "vit": ({"num_classes": 5, "norm_epsilon": 1e-3, "activation": "gelu_tanh"}, ()),
    "vit with pooler": ({"num_classes": 0, "pre_logits": 24}, ()),
    "fixed positions": ({"num_classes": 5, "positions": "sincos2d"}, ("count as learned",)),
    "bare vit": ({"num_classes": 0, "activation": "relu"}, ("random pooler",)),
    "deit": ({"num_classes": 5, "distilled": True}, ()),
    "bare deit": ({"num_classes": 0, "distilled": True, "activation": "quick_gelu"}, ("random pooler",)),
    "bare dinov2": ({"num_classes": 0, "layer_scale": 0.5}, ()),
    "gated dinov2": ({"num_classes": 5, "layer_scale": 0.5, "pool": "cls_gap", **SWIGLU}, ()),
    "dinov2": ({"num_classes": 5, "layer_scale": 1e-5, "pool": "cls_gap"}, ()),
    "features of dinov2": ({"num_classes": 0, "layer_scale": 1e-5, "pool": "cls_gap"}, ()),
    "bare registers": ({"num_classes": 0, "registers": 2, "activation": "quick_gelu"}, ("ones are written",)),
    "registers": ({"num_classes": 5, "layer_scale": 1.0, "registers": 3, "pool": "cls_gap"}, ()),
}


def randomise(torch, module, std=0.1):
    """Every parameter is drawn, so that none can be mistaken for another."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, x in module.named_parameters():
            scale = (name.endswith("weight") and x.ndim == 1) or "lambda1" in name
            x.copy_(torch.randn(x.shape) * std + (1.0 if scale else 0.0))
    return module.eval()


@pytest.fixture(scope="module")
def peer(torch, transformers, tmp_path_factory):
    """``peer(case) -> (module, folder)``: a model with random weights and what ``save_pretrained`` makes of it."""
    transformers.utils.logging.disable_progress_bar()
    made = {}

    def make(case, **more):
        if case not in made:
            kind, config, options = CASES[case]
            kind = getattr(transformers, kind)
            config = kind.config_class(**{**config, **more}, attn_implementation="eager")
            folder = tmp_path_factory.mktemp("peer")
            module = randomise(torch, kind(config, **options))
            module.save_pretrained(folder)
            made[case] = module, folder
        return made[case]

    return make


def convert(theirs, about, name=None):
    """As ``load`` does."""
    assert hf.FORMAT.matches(theirs)
    reading = vit.read(theirs, about)
    model = describe.build(reading.model, name)
    shapes = describe.shapes(model, reading.preprocess.size)
    params, notes = rules.into(vit.rules(model, reading.layout), theirs, shapes, source="theirs", unused=reading.unused)
    found = Stored(
        model,
        params,
        reading.preprocess,
        reading.class_names,
        reading.output_activation,
        notes=(*reading.assumed.values(), *reading.notes, *notes),
    )
    return found, reading.layout


def in_memory(tensors):
    return {name: Tensor.of(leaf.read()) for name, leaf in tensors.items()}


def load(folder):
    """Everything in a folder: our model, the layout, their tensors."""
    about = {p.name: json.loads(p.read_text()) for p in folder.glob("*.json")}
    with open_tensors(folder / "model.safetensors") as tensors:
        theirs = in_memory(tensors)
    return *convert(theirs, about), theirs


def save(pretrained, folder):
    """As ``save`` does."""
    writing = vit.write(pretrained)
    tensors = rules.back(vit.rules(pretrained.model, writing.layout), pretrained.params, name="hf") | dict(
        writing.extra
    )
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    for name, content in writing.about.items():
        (folder / name).write_text(json.dumps(content))
    return writing


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name].read(), b[name].read(), err_msg=name)


def activations(torch, module, images):
    """What comes out of every block, of the last norm and of the model."""
    bare = getattr(module, module.base_model_prefix, module)
    blocks = bare.layers if hasattr(bare, "layers") else bare.encoder.layer
    seen, hooks = {}, []
    for name, part in {**{f"block_{i}": b for i, b in enumerate(blocks)}, "norm": bare.layernorm}.items():
        hooks.append(part.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out.numpy()})))
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        if type(bare).__name__ == "ViTMAEModel":  # noise in this order leaves the patches where they are
            out = bare(pixels, noise=torch.arange(16.0).expand(len(pixels), -1))
        else:
            out = module(pixels)
    for hook in hooks:
        hook.remove()
    pooled = out.logits if hasattr(out, "logits") else getattr(out, "pooler_output", None)
    if pooled is None:
        pooled = out.last_hidden_state[:, : 1 + hasattr(bare.embeddings, "distillation_token")].mean(1)
    return {**seen, "out": pooled.numpy()}


def ours(pretrained, images):
    out, seen = captured(pretrained, images, also=["norm"])
    return {**seen, "out": out}


def agree(torch, module, pretrained):
    size = pretrained.preprocess.size
    images = np.random.default_rng(0).standard_normal((2, size, size, 3), np.float32)
    want, got = activations(torch, module, images), ours(pretrained, images)
    assert set(want) == set(got) == {*(f"block_{i}" for i in range(pretrained.model.depth)), "norm", "out"}
    for name in want:
        assert np.abs(want[name]).max() > 0.1
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("case", rest_slow(CASES, "vit", "dinov2", "bare registers", "deit", "mae", "gated dinov2"))
def test_every_block_agrees(torch, peer, case):
    module, folder = peer(case)
    agree(torch, module, load(folder)[0])


UNUSED = re.compile("mask_token|^decoder")


@pytest.mark.parametrize("case", CASES)
def test_the_way_back_is_the_file_and_the_state(torch, peer, case):
    module, folder = peer(case)
    pretrained, layout, theirs = load(folder)
    kept = {name: leaf for name, leaf in theirs.items() if not UNUSED.search(name)}
    assert not layout.modern
    same(rules.back(vit.rules(pretrained.model, layout), pretrained.params, name="hf"), kept)

    state = {name: Tensor.of(x.numpy()) for name, x in module.state_dict().items()}
    about = {"config.json": json.loads((folder / "config.json").read_text())}
    again, modern = convert(state, about)
    assert modern.modern
    same(again.params, pretrained.params)
    back = rules.back(vit.rules(again.model, modern), again.params, name="hf")
    back |= {name: leaf for name, leaf in state.items() if UNUSED.search(name)}
    module.load_state_dict({name: torch.from_numpy(leaf.read().copy()) for name, leaf in back.items()}, strict=True)
    same(back, state)


def drawn(fields, size=32):
    """A model of ours with random weights."""
    model = models.create("vit", width=32, depth=2, heads=4, mlp_dim=64, patch=8, **fields)
    rng = np.random.default_rng(0)
    params = {}
    for path, shape in describe.shapes(model, size).items():
        centre = 1.0 if "scale" in path else 0.0
        params[path] = Tensor.of(centre + 0.1 * rng.standard_normal(shape, np.float32))
    names = tuple(f"animal {i}" for i in range(model.num_classes))
    preprocess = Preprocess(
        size, 0.8, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), frame=Framing(rounding="transformers")
    )
    return Stored(model, params, preprocess, names, "sigmoid")


@pytest.mark.parametrize("case", rest_slow(OURS, "vit", "features of dinov2", "registers", "deit", "gated dinov2"))
def test_what_is_written_loads_in_transformers(torch, transformers, tmp_path, case):
    fields, noted = OURS[case]
    pretrained = drawn(fields)
    writing = save(pretrained, tmp_path / "out")
    assert len(writing.notes) == len(noted) and all(part in writing.notes[0] for part in noted)

    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    headed = settings["architectures"][0].endswith("ForImageClassification")
    auto = transformers.AutoModelForImageClassification if headed else transformers.AutoModel
    if case == "deit":  # transformers' own automatic class of a DeiT has one classifier
        auto = transformers.DeiTForImageClassificationWithTeacher
    options = {"add_pooling_layer": False} if case in ("bare vit", "bare deit") else {}
    transformers.utils.logging.disable_progress_bar()
    module, report = auto.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager", **options
    )
    assert type(module).__name__ == settings["architectures"][0]
    assert not any(report.values()), report
    agree(torch, module.eval(), pretrained)
    if pretrained.model.num_classes:
        assert module.config.id2label == dict(enumerate(pretrained.class_names))
        assert module.config.problem_type == "multi_label_classification"


OTHERS = ("deit", "bare deit", "gated dinov2")  # which NumPy's account of transformers' code leaves out


@pytest.mark.parametrize(
    "case", rest_slow([c for c in OURS if c not in OTHERS], "vit", "vit with pooler", "features of dinov2", "registers")
)
def test_what_is_written_computes_what_transformers_computes(tmp_path, case):
    """As transformers' code does, without transformers."""
    pretrained = drawn(OURS[case][0])
    save(pretrained, tmp_path / "out")
    with open_tensors(tmp_path / "out" / "model.safetensors") as tensors:
        theirs = torch_reference.wide(tensors)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    act = vit_config.ACTIVATIONS[settings["hidden_act"]]
    want = torch_reference.hf_vit(images, theirs, settings["num_attention_heads"], settings["layer_norm_eps"], act)
    found = ours(pretrained, images)
    if case == "features of dinov2":
        found["out"] = found["out"][:, :32]  # a bare model gives the cls token, ours the average beside it
    assert np.abs(want[0]).max() > 0.1
    for a, b in zip((want[0], *want[1]), (found["out"], *(found[f"block_{i}"] for i in range(2))), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", OURS)
def test_ours_there_and_back(tmp_path, case):
    pretrained = drawn(OURS[case][0])
    save(pretrained, tmp_path / "out")
    again, _, theirs = load(tmp_path / "out")
    new = {name: leaf for name, leaf in again.params.items() if name not in pretrained.params}
    same({name: leaf for name, leaf in again.params.items() if name not in new}, pretrained.params)
    if case == "bare registers":
        assert len(new) == 4 and all((leaf.read() == 1).all() for leaf in new.values())
    else:
        assert list(new) == (["position/embedding"] if case == "fixed positions" else [])
    changed = {"bare registers": {"layer_scale": 1.0}, "fixed positions": {"positions": "learn"}}.get(case, {})
    assert again.model == pretrained.model.clone(**changed)
    assert (again.preprocess, again.class_names) == (pretrained.preprocess, pretrained.class_names)
    assert again.output_activation == "sigmoid"
    assert any("mask_token" in name for name in theirs) == ("registers" in case or "dinov2" in case)


def test_equal_class_names_and_placeholders(tmp_path):
    """ImageNet has two cranes; a label that is only a number is not a name."""
    pretrained = drawn({"num_classes": 3})
    for names in (("crane", "maillot", "crane"), ()):
        writing = vit.write(dataclasses.replace(pretrained, class_names=names))
        config = writing.about["config.json"]
        assert config["id2label"] == dict(zip("012", names or "012", strict=True))
        assert config["label2id"] == ({"crane": 0, "maillot": 1} if names else {"0": 0, "1": 1, "2": 2})


def test_names_of_other_classes_are_left_out(peer):
    _, folder = peer("vit")
    settings = json.loads((folder / "config.json").read_text())
    with open_tensors(folder / "model.safetensors") as theirs:
        found = vit.read(theirs, {"config.json": {**settings, "id2label": {"0": "cat"}}})
    assert found.class_names == () and "config.json names 1 classes, the classifier has 5" in found.notes


PROCESSOR = {
    "image_processor_type": "BitImageProcessor", "do_center_crop": True, "resample": 3, "size": {"shortest_edge": 48},
    "crop_size": {"height": 42, "width": 42}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25],
}  # fmt: skip


@pytest.mark.parametrize("case", ["bare dinov2", "registers"])
def test_dinov2_resizes_its_positions_to_the_processors_images(case, peer, tmp_path):
    """Published ones have positions for 518 px and a processor that makes 224: so it is evaluated, here as there."""
    place = tmp_path / "there"
    shutil.copytree(peer(case)[1], place)
    (place / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    path = "position/embedding"
    with read.load(place) as found:
        assert (found.native, found.preprocess.size, found.preprocess.frame.rest) == (32, 40, 2)  # five patches of 8
        stored = found.params[path].read()
        assert stored.shape == (1, 17, 32) and found.fitted().params[path].shape == (1, 26, 32)
        rows = verify.verify(found, [place])
        assert [row.output for row in rows] == ["pixel", "logit", "logit"] and all(row.ok for row in rows), rows
        ready = found.read()
        assert any("positions for 32 px are resized to 40 px" in note for note in ready.notes)
        write.save(found, tmp_path / "again", "hf")
        write.save(found, tmp_path / "run", "vit_jax")
    with read.load(tmp_path / "again") as again, read.load(tmp_path / "run") as run:
        assert again.native == 32 and again.preprocess == run.preprocess == found.preprocess
        np.testing.assert_array_equal(again.params[path].read(), stored)
        np.testing.assert_array_equal(run.params[path].read(), ready.params["position"]["embedding"])


def test_positions_go_unresized_where_images_have_one_size(peer, tmp_path):
    shutil.copytree(peer("bare registers")[1], tmp_path / "there")
    (tmp_path / "there/preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    with read.load(tmp_path / "there") as found:
        notes = write.save(found, tmp_path / "timm", "timm")
        assert any("images have 32 px there" in note for note in notes)
        with read.load(tmp_path / "timm") as there:
            assert there.preprocess.size == 32
            for path, tensor in found.params.items():
                np.testing.assert_array_equal(there.params[path].read(), tensor.read())


def test_a_file_alone(peer):
    """Without its JSON a file is read by transformers' defaults, and that is said."""
    _, folder = peer("dinov2")
    with open_tensors(folder / "model.safetensors") as tensors:
        theirs = in_memory(tensors)
    found, _ = convert(theirs, {}, "vit(heads=4)")
    want, *_ = load(folder)
    assert found.model == want.model
    same(found.params, want.params)
    assert (found.preprocess.size, found.preprocess.crop) == (32, 0.875)
    text = "\n".join(found.notes)
    for part in (
        "1 heads are assumed",
        "no config.json: gelu and layer norms with epsilon 1e-06",
        "no preprocessor_config",
    ):
        assert part in text
    assert "dinov2.embeddings.mask_token is left out (only training on masked images uses it)" in text


def test_a_pooler_beside_a_classifier_is_left_out(peer):
    _, folder = peer("vit")
    _, pooler = peer("vit with pooler")
    with open_tensors(folder / "model.safetensors") as a, open_tensors(pooler / "model.safetensors") as b:
        extra = {f"vit.{name}": leaf for name, leaf in b.items() if name.startswith("pooler")}
        found, _ = convert(in_memory({**a, **extra}), {"config.json": json.loads((folder / "config.json").read_text())})
    assert found.model.pre_logits is None
    assert any("pooler" in note and "left out (the classifier does not use it)" in note for note in found.notes)


@pytest.mark.parametrize("case", ["vit", "registers"])
def test_resizing_positions_as_transformers_does(torch, peer, case):
    """DINOv2 with registers smooths its positions where the grid becomes coarser, the others do not."""
    module, folder = peer(case)
    with open_tensors(folder / "model.safetensors") as theirs:
        resize = vit.read(theirs, {"config.json": json.loads((folder / "config.json").read_text())}).resize
    embeddings = getattr(module, module.base_model_prefix).embeddings
    for side in (3, 7):
        tokens = torch.zeros(1, side * side + 1, 32)
        with torch.no_grad():
            want = embeddings.interpolate_pos_encoding(tokens, 8 * side, 8 * side).numpy()
        got = resize_positions(
            embeddings.position_embeddings.detach().numpy(), (4, 4), (side, side), 1, resize or hf.FORMAT.resize
        )
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["vit", "dinov2", "registers"])
@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (768, 12)])
def test_full_size(torch, transformers, tmp_path, case, width, heads):
    kind, config, _ = CASES[case]
    sizes = {"hidden_size": width, "num_hidden_layers": 12, "num_attention_heads": heads, "image_size": 224}
    mlp = {"intermediate_size": 4 * width} if case == "vit" else {"mlp_ratio": 4}
    kind = getattr(transformers, kind)
    config = kind.config_class(**{**config, **sizes, **mlp, "patch_size": 16}, attn_implementation="eager")
    module = randomise(torch, kind(config), width**-0.5 / 2)
    module.save_pretrained(tmp_path)
    pretrained, layout, theirs = load(tmp_path)
    agree(torch, module, pretrained)
    kept = {name: leaf for name, leaf in theirs.items() if not UNUSED.search(name)}
    same(rules.back(vit.rules(pretrained.model, layout), pretrained.params, name="hf"), kept)
