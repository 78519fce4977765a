"""timm's NaFlexVit with SigLIP 2's image tower: images of unlike shapes, and the weights back bit for bit."""

import json

import numpy as np
import pytest

from tests.convert.timm_models import convert, create, tensors_of
from vit_jax.convert import read, verify, write
from vit_jax.convert.format import check
from vit_jax.convert.pretrained import Preprocess, Stored
from vit_jax.convert.timm import FORMAT, naflex
from vit_jax.data.framing import Framing
from vit_jax.io.tensors import Tensor, write_safetensors
from vit_jax.models import create as ours
from vit_jax.models import describe
from vit_jax.types import UserError

ARGS = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 1.5, "pos_embed_grid_size": [3, 3]}
FIELDS = {"patch": 8, "width": 24, "depth": 1, "heads": 3, "mlp_dim": 36, "num_classes": 0, "activation": "gelu_tanh"}
FIELDS |= {"pool": "map", "position_grid": 3}


def stored(rng):
    model = ours("vit", **FIELDS)
    shapes = describe.shapes(model, 24)
    params = {path: Tensor.of(rng.normal(size=shape).astype(np.float32)) for path, shape in shapes.items()}
    frame = Framing("patches", rounding="torchvision", patch=8)
    return Stored(model, params, Preprocess(40, 1.0, "bicubic", frame=frame), source="x")


def test_a_model_comes_back_bit_for_bit(rng, tmp_path):
    there = stored(rng)
    write.save(there, tmp_path / "out", "timm")
    with read.load(tmp_path / "out") as found:
        assert (found.model, found.preprocess) == (there.model, there.preprocess), found.notes
        assert not found.assumed
        for path, tensor in there.params.items():
            np.testing.assert_array_equal(found.params[path].read(), tensor.read(), err_msg=path)
    (tmp_path / "out/config.json").unlink()
    with read.load(tmp_path / "out", "vit(heads=3)") as found:
        assert found.model == there.model and "gelu_tanh is assumed, as of SigLIP 2" in found.notes


@pytest.mark.peer
def test_timm_computes_the_same(timm, torch, tmp_path):
    module = create(timm, torch, naflex.ARCHITECTURE, ARGS)
    write_safetensors(tmp_path / "model.safetensors", tensors_of(module), {"format": "pt"})
    about = {
        **module.about,
        "num_classes": 0,
        "pretrained_cfg": {**module.about["pretrained_cfg"], "input_size": [3, 40, 40]},
    }
    (tmp_path / "config.json").write_text(json.dumps(about))
    with read.load(tmp_path) as found:
        assert (found.model.position_grid, found.preprocess.size) == (3, 40)
        rows = verify.verify(found, [tmp_path])
    assert [row.images for row in rows] == ["noise", "photographs"] and all(row.ok for row in rows), rows


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_args": {"pos_embed_interp_mode": "bicubic"}}, "not resized as SigLIP 2's"),
        ({"architecture": "naflexvit_base_patch16_map"}, "resizes them by bicubic"),
    ],
)
def test_other_positions_are_refused(rng, tmp_path, change, said):
    write.save(stored(rng), tmp_path / "out", "timm")
    path = tmp_path / "out/config.json"
    about = json.loads(path.read_text())
    about["model_args"].pop("act_layer")
    path.write_text(json.dumps({**about, **change}))
    with pytest.raises(UserError, match=said):
        read.load(tmp_path / "out").__enter__()


def test_parts_of_other_naflex_models_are_named(rng):
    theirs = dict.fromkeys(("embeds.proj.weight", "embeds.pos_embed_y"), Tensor.of(np.zeros((1, 3, 3, 4), np.float32)))
    with pytest.raises(UserError, match="positions of rows and of columns"):
        convert(theirs, None)


def test_what_timm_cannot_say():
    for change, said in (({"pool": "gap"}, "pool='gap'"), ({"norm_epsilon": 1e-5}, "norm_epsilon=1e-05")):
        with pytest.raises(UserError, match=f"SigLIP 2's, not with {said}"):
            check(ours("vit", **{**FIELDS, **change}), FORMAT, ())
