"""Programs in ONNX Runtime against the checkpoint, the model's families, and what is refused."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax.export import onnx as export_onnx
from vit_jax.export.onnx import file
from vit_jax.types import UserError

CONSUMER = """
{usage}
for name in ("one", "three"):
    numpy.save(name + ".out.npy", session.run(None, {"images": numpy.load(name + ".npy")})[0])
"""
PACKAGES = ("vit_jax", "jax", "torch")
ALONE = f"""
import sys
assert not [m for m in sys.modules if m.split(".")[0] in {PACKAGES}]
"""


@pytest.fixture(scope="module")
def written(predictor, tmp_path_factory):
    """The predictor with a class token, as a program; what was written, and the predictor."""
    ours = predictor()
    done = export_onnx.write(ours, tmp_path_factory.mktemp("onnx") / "out")
    assert os.listdir(done.folder.parent) == ["out"] and sorted(os.listdir(done.folder)) == ["model.json", "model.onnx"]
    return done, ours


@pytest.mark.parametrize("process", ["this", pytest.param("another", marks=pytest.mark.slow)])
def test_it_runs_without_us(written, canvases, alone, capsys, process):
    """The usage in model.json as it stands, then batches of one and three."""
    written, ours = written
    folder = written.folder
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    Image.fromarray(canvases[0]).save(folder / "image.jpg")
    for name, images in {"one": canvases[:1], "three": canvases}.items():
        np.save(folder / f"{name}.npy", images)
    assert "\n".join(written.usage) in about["usage"]
    script = CONSUMER.replace("{usage}", about["usage"])
    if process == "this":
        alone(folder, script, *PACKAGES)
        printed = capsys.readouterr().out
    else:
        command = [sys.executable, "-c", script + ALONE]
        printed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True).stdout
    assert printed.startswith("[[")
    expected = ours.probabilities(canvases)
    for name, rows in {"one": expected[:1], "three": expected}.items():
        np.testing.assert_allclose(np.load(folder / f"{name}.out.npy"), rows, rtol=0, atol=1e-5)
    assert expected.max() > 0.3 and written.difference < 1e-5 and written.notes == ()


def test_what_it_says_of_itself(written):
    import onnx

    written, ours = written
    model = onnx.load(written.folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    props = {p.key: p.value for p in model.metadata_props}
    assert json.loads(props["class_names"]) == list(ours.class_names)
    assert json.loads(props["source"])["checkpoint"] == "run/checkpoints/7"
    assert json.loads(props["input"])["shape"] == ["batch", 10, 10, 3]
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"images": ["batch", 10, 10, 3], "probabilities": ["batch", 7]}
    assert written.signature[1] == "probabilities float32[batch, 7]: softmax over class_names"
    assert "encoder/block_0/mlp/mlp_in/kernel" in {w.name for w in model.graph.initializer}
    assert any(n.name.endswith("block_1.mlp/mlp/mlp_out/MatMul_43") or "mlp_out" in n.name for n in model.graph.node)


def test_a_low_precision_model_without_a_head(predictor, tmp_path):
    """It computes in float32, says so, and equals the checkpoint computed so."""
    ours = predictor((), model={"dtype": "bfloat16", "pool": "gap", "depth": 1})
    written = export_onnx.write(ours, tmp_path / "out")
    assert written.notes[-1] == "it computes in float32, the checkpoint in bfloat16"
    assert written.signature[1].startswith("features float32[batch, 32]") and written.difference < 1e-5


@pytest.mark.parametrize(
    "augment",
    [
        {"crop": 0.8, "norm": "inception", "interpolation": "bilinear"},  # cut, not resampled
        {"crop": 0.5, "interpolation": "bicubic"},  # enlarged, beyond [0, 1] without clipping
    ],
    ids=["cut", "enlarged"],
)
def test_it_prepares_as_we_do(predictor, canvases, tmp_path, augment):
    ours = predictor(
        model={"depth": 1}, augment=augment, objective={"name": "classify", "output_activation": "sigmoid"}
    )
    written = export_onnx.write(ours, tmp_path / "out")
    extreme = np.where(canvases > 127, np.uint8(255), np.uint8(0))
    theirs = file.run(written.folder / "model.onnx", {"images": extreme})
    np.testing.assert_allclose(theirs, ours.probabilities(extreme), rtol=0, atol=1e-5)


STRUCTURED = {
    "monarch": {"qkv_linear": "monarch(4)", "out_linear": "monarch(4)", "mlp_linear": "monarch(4)"},
    "low rank, blocks": {
        "qkv_linear": "low_rank(4)", "out_linear": "block_diagonal(4)", "mlp_linear": "block_sparse(0.5, block=8)",
    },
    "packed24": {"mlp_linear": "packed24"},
    "int8": {"qkv_linear": "int8", "mlp_linear": "int8(dynamic)"},
}  # fmt: skip
MODELS = {
    "pooling, registers": {"pool": "map", "registers": 2, "layer_scale": 0.5, "activation": "quick_gelu"},
    "DINOv2": {"pool": "cls_gap", "pre_norm": True, "positions": "sincos2d", "activation": "gelu_tanh"},
    "scan, top-k": {"pool": "gap", "activation": "topk(8)", "scan": True, "remat": "full", "pre_logits": 8},
    "mixer": {"name": "mixer", "token_dim": 16},
    "monarch mixer": {"name": "monarch_mixer", "filter_hidden": 8, "filter_features": 5},
    "hybrid": {"name": "vit", "patch": 1, "heads": 2, "stem": (1,)},
}
STAGES = {
    "convnext": ({"depths": (1, 2), "widths": (8, 16), "patch": 2}, 3),
    "hornet": ({"depths": (1, 1), "widths": (8, 16), "orders": (2, 3), "patch": 2}, 2),
    "nf_resnet": ({"depths": (1, 1), "widths": (8, 16), "stem_width": 4}, 3),
    "mobilenet": (
        {
            "stem_width": 4, "widths": (8, 16), "hidden": ((4,), (24, 24)), "kernels": (3, 5), "strides": (1, 2),
            "excite": (False, True), "activations": ("relu", "hard_swish"), "last_width": 16,
        },
        4,
    ),
}  # fmt: skip


@pytest.mark.first(3)
@pytest.mark.parametrize("model", [*MODELS, *STRUCTURED])
def test_every_family(predictor, tmp_path, model):
    raw = {"width": 32, "mlp_dim": 64, "depth": 1, **(MODELS | STRUCTURED)[model]}
    ours = predictor(model=raw, augment={"size": 32} if model == "hybrid" else {})
    assert export_onnx.write(ours, tmp_path / "out").difference < 1e-5


@pytest.mark.thorough
@pytest.mark.parametrize("name", STAGES)
def test_convolutions_are_the_runtimes_own(predictor, tmp_path, name):
    """One operation for each, where the program for a CPU has a sum of shifted images; of odd sides, too."""
    import onnx

    fields, convolutions = STAGES[name]
    size = 9 if name in ("nf_resnet", "mobilenet") else 8
    ours = predictor(model={"name": name, **fields}, augment={"size": size})
    written = export_onnx.write(ours, tmp_path / "out")
    assert written.difference < 1e-5
    nodes = onnx.load(written.folder / "model.onnx").graph.node
    assert sum(node.op_type == "Conv" for node in nodes) == convolutions


SCANNED = {"name": "vim", "state": 2, "depth": 1}
FILTERED = {"name": "hornet", "depths": (1,), "widths": (8,), "orders": (2,), "patch": 2, "filter_size": 8}


@pytest.mark.parametrize(("model", "what"), [(SCANNED, "scan"), (FILTERED | {"global_filters": True}, "fft")])
def test_what_onnx_cannot_say_is_a_sentence(predictor, tmp_path, model, what):
    with pytest.raises(
        UserError, match=rf"^ONNX export knows no '{what}', which the model computes in .*/block_0/.*"
    ) as e:
        export_onnx.write(predictor(model=model), tmp_path / "out")
    assert str(e.value).endswith("; export it with --to stablehlo.") and os.listdir(tmp_path) == []


def test_a_missing_package_names_the_extra(predictor, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        UserError, match=r"--to onnx takes the extra 'onnx' \(.*onnxruntime.*\): pip install .*\[onnx\]"
    ):
        export_onnx.write(predictor(), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_towers_rank_an_image_against_texts(image_text, canvases, alone, capsys, tmp_path):
    """The usage as it stands, without us."""
    ours = image_text(bias=-1.0)
    written = export_onnx.write(ours, tmp_path / "out")
    assert sorted(os.listdir(written.folder)) == ["image.onnx", "model.json", "text.onnx", "tokenizer.json"]
    about = json.loads((written.folder / "model.json").read_text(encoding="utf-8"))
    assert about["logit_scale"] == pytest.approx(np.exp(1.5)) and about["output_activation"] == "sigmoid"
    assert about["tokenizer"]["file"] == "tokenizer.json" and about["text"]["input"]["shape"] == ["batch", 12]
    image = canvases[0].repeat(4, axis=0).repeat(3, axis=1)
    Image.fromarray(image).save(written.folder / "image.jpg", quality=100)
    with np.printoptions(precision=8):
        alone(written.folder, about["usage"], *PACKAGES)
    printed = np.array(json.loads(capsys.readouterr().out.replace(" ", ",").replace(",,", ",").replace("[,", "[")))
    ranked = ours.rank([str(written.folder / "image.jpg")], ["a photo of a cat", "a photo of a dog"])
    expected = {row["text"]: row["probability"] for row in next(iter(ranked))["predictions"]}
    np.testing.assert_allclose(printed[0], [expected["a photo of a cat"], expected["a photo of a dog"]], atol=1e-5)
    assert printed.shape == (1, 2) and 0.01 < printed.max() < 0.99


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("name", "text", "fields"),
    [
        ("coca", {"pool": "cls"}, {"decoder": {"depth": 1, "heads": 2, "mlp_dim": 8}, "queries": 3, "pool_heads": 2}),
        ("two_tower", {"pool": "map", "causal": False}, {"text_head": "biased"}),
        ("two_tower", {"pool": "gap", "rotary": None}, {"image": {"dtype": "bfloat16"}}),
    ],
    ids=["coca", "siglip", "gap"],
)
def test_other_towers(image_text, tmp_path, name, text, fields):
    written = export_onnx.write(image_text(name, text, **fields), tmp_path / "out")
    assert written.difference < 1e-5
    assert any("decoder" in note for note in written.notes) == (name == "coca")


@pytest.mark.peer
def test_timm_says_the_same(timm, torch, tmp_path):
    """Weights of timm's, read by us, exported: ONNX Runtime against timm's own logits."""
    import vit_jax as vj

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, depth=2).eval()
    timm.models.save_for_hf(model, tmp_path / "timm", safe_serialization=True)
    written = vj.export(str(tmp_path / "timm"), tmp_path / "out", to="onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    normalised = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        theirs = model(normalised).softmax(-1).numpy()
    found = file.run(written.folder / "model.onnx", {"images": pixels})
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-5)
    assert jax.default_backend() == "cpu" and theirs.std() > 1e-3
