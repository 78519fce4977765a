"""DINOv3 ViTs against transformers' own model, there and back bit for bit, and what it is not."""

import json

import numpy as np
import pytest

from tests.convert.cases import rest_slow
from tests.convert.outputs import captured
from vit_jax import models
from vit_jax.convert import hf, read, verify, write
from vit_jax.convert.format import check
from vit_jax.convert.formats import FORMATS
from vit_jax.convert.hf import dinov3
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import back
from vit_jax.data.framing import Framing
from vit_jax.io.tensors import Tensor, open_tensors, write_safetensors
from vit_jax.models import describe
from vit_jax.types import UserError

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
CASES = {
    "plain": {**SIZE, "intermediate_size": 48, "num_register_tokens": 4},
    "gates": {**SIZE, "intermediate_size": 48, "num_register_tokens": 3, "use_gated_mlp": True, "hidden_act": "silu"},
    "biases": {**SIZE, "intermediate_size": 64, "key_bias": True, "rope_theta": 50.0, "layer_norm_eps": 1e-3},
    "no biases": {**SIZE, "intermediate_size": 64, "query_bias": False, "value_bias": False},
}


@pytest.fixture(scope="module")
def peer(torch, transformers, tmp_path_factory):
    """``peer(case) -> (module, folder)``: a model with random weights and what ``save_pretrained`` makes of it."""
    transformers.utils.logging.disable_progress_bar()
    made = {}

    def make(case):
        if case not in made:
            torch.manual_seed(0)
            module = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**CASES[case])).eval()
            with torch.no_grad():
                for name, x in module.named_parameters():
                    one = (name.endswith("weight") and x.ndim == 1) or "lambda1" in name
                    x.copy_(torch.randn(x.shape) * 0.1 + (1.0 if one else 0.0))
            folder = tmp_path_factory.mktemp("dinov3")
            module.save_pretrained(folder)
            made[case] = module, folder
        return made[case]

    return make


@pytest.mark.parametrize("case", rest_slow(CASES, "gates", "biases"))
def test_every_block_agrees_and_the_way_back_is_the_file(torch, peer, tmp_path, case):
    module, folder = peer(case)
    seen, encoder = {}, module.model.layer
    for i, block in enumerate(encoder):
        block.register_forward_hook(lambda m, x, out, i=i: seen.update({f"block_{i}": out.numpy()}))
    with read.load(folder) as found:
        size = found.preprocess.size
        x = np.random.default_rng(0).standard_normal((2, size, size, 3), np.float32)
        with torch.no_grad():
            seen["out"] = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).pooler_output.numpy()
        out, blocks = captured(found, x)
        got = {**blocks, "out": out}
        assert set(got) == set(seen)
        for name, want in seen.items():
            assert np.abs(want).max() > 0.1
            np.testing.assert_allclose(got[name], want, rtol=0, atol=2e-5, err_msg=name)
        rows = verify.verify(found, [folder])
        assert rows and all(row.ok for row in rows), rows
        write.save(found, tmp_path / "again", "hf")
    with open_tensors(folder / "model.safetensors") as a, open_tensors(tmp_path / "again/model.safetensors") as b:
        assert set(a) == set(b)
        for name in a:
            if name != dinov3.MASK:
                np.testing.assert_array_equal(a[name].read(), b[name].read(), err_msg=name)


@pytest.mark.parametrize("start", dinov3.STARTS)
def test_names_of_files_and_of_memory_without_a_description(rng, tmp_path, start):
    fields = {"patch": 8, "width": 64, "depth": 2, "heads": 1, "mlp_dim": 24, "num_classes": 0, "positions": "none"}
    fields |= {"rotary": "rope", "qkv_bias": "qv", "layer_scale": 1.0, "registers": 2, "norm_epsilon": 1e-5}
    model = models.create("vit", **fields)
    draw = {p: Tensor.of(rng.standard_normal(s, np.float32)) for p, s in describe.shapes(model, 32).items()}
    pixels = Preprocess(32, 1.0, "bilinear", frame=Framing("squash", rounding="transformers"))
    writing = hf.FORMAT.write(Stored(model, draw, pixels))
    tensors = {
        **back(hf.FORMAT.rules(model, start), draw, name="it"),
        "rope_embeddings.inv_freq": Tensor.of(np.ones(4, "f4")),
    }
    write_safetensors(tmp_path / "model.safetensors", {**tensors, **writing.extra}, {})
    with read.load(tmp_path / "model.safetensors") as found:
        assert found.model == model and any("rope_theta 100" in note for note in found.notes)
        for path, tensor in draw.items():
            np.testing.assert_array_equal(found.params[path].read(), tensor.read())
    (tmp_path / "config.json").write_text(json.dumps(writing.about["config.json"]))
    with read.load(tmp_path) as found:
        assert found.model == model and not any("assumed" in note for note in found.notes if "config" in note)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_classes": 3}, "has no classifier"),
        ({"pool": "gap"}, "has no pool='gap'"),
        ({"rotary": "rope(grid=index)"}, "has no rotary=Rope"),
        ({"positions": "learn"}, "has no positions='learn' beside rotary ones"),
        ({"ffn": "gated(8, 1e-6)"}, "has no ffn=Gated"),
        ({"qk_norm": "rms"}, "has no qk_norm='rms'; write --to timm"),
    ],
)
def test_what_it_is_not(fields, says):
    model = models.create("vit", **{"rotary": "rope", "positions": "none", "num_classes": 0, **fields})
    with pytest.raises(UserError, match=f"^(transformers' DINOv3|Hugging Face transformers) {says}"):
        check(model, FORMATS["hf"], FORMATS.values())


def test_who_has_rotary_positions_is_named():
    model = models.create("vit", rotary="rope", positions="none", num_classes=0)
    with pytest.raises(UserError, match=r"^the original repository has no rotary='rope\(.*\)'; write --to timm\.$"):
        check(model, FORMATS["npz"], FORMATS.values())
