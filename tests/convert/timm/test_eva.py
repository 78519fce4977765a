"""timm's Eva: what config.json says of rotary positions, files of DINOv3's authors, and what timm has not."""

import json

import numpy as np
import pytest

from tests.convert.timm_models import convert, create, gaps, ours, photos, same_bits, tensors_of, theirs
from vit_jax.convert import read, verify, write
from vit_jax.convert.format import check
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.timm import FORMAT, eva, vit
from vit_jax.io.tensors import Tensor, open_tensors, write_safetensors
from vit_jax.layers.rotary import Rope, RopeMixed
from vit_jax.models import create as model_of
from vit_jax.models import describe
from vit_jax.types import UserError

SMALL = dict(embed_dim=32, depth=2, num_heads=2, mlp_ratio=3, patch_size=8, img_size=32, num_classes=0)


@pytest.mark.parametrize(
    "rope",
    [
        Rope(),
        Rope(10_000, "interleaved", 16),
        Rope(50, "half", "index", "xy"),
        Rope(7, "interleaved", "unit"),
        RopeMixed(5, "yx"),
    ],
)
def test_arguments_of_rotary_positions_come_back(rope):
    model = model_of("vit", rotary=rope, norm_epsilon=1e-5)
    args = {"use_rot_pos_emb": True} | {k: v for k, v in eva.arguments(rope).items() if v is not None}
    found = eva.rotary(json.loads(json.dumps(args)))
    assert model_of("vit", rotary=found, norm_epsilon=1e-5) == model
    assert eva.rotary({"use_rot_pos_emb": False}) is None


def test_who_stores_what():
    plain, rotary = model_of("vit"), model_of("vit", rotary="rope", norm_epsilon=1e-5)
    assert FORMAT.codec(plain) is vit.CODEC and FORMAT.codec(rotary) is eva.CODEC
    assert FORMAT.codec(model_of("vit", ffn="gated")) is vit.CODEC
    assert FORMAT.codec(model_of("vit", ffn="gated(None, 1e-6)")) is eva.CODEC
    for fields, says in (
        ({"rotary": "rope_mixed", "norm_epsilon": 1e-3}, "timm has no norm_epsilon=0.001 with rotary positions"),
        ({"rotary": "rope", "pool": "map"}, "timm has no pool='map' with rotary positions"),
        ({"rotary": "rope", "positions": "sincos2d"}, "timm has no fixed positions beside rotary ones"),
        ({"rotary": "rope", "norm_epsilon": 1e-3}, "timm has no norm_epsilon=0.001 with rotary positions"),
        ({"rotary": "rope", "activation": "relu"}, "with rotary positions timm has MLPs with gelu and gates with silu"),
        ({"rotary": "rope", "distilled": True}, "timm has no distilled='True'"),
        ({"qkv_bias": "qv", "stem": ()}, "timm has no stem"),
        ({"qkv_bias": "none", "ffn": "gated(None, 1e-3)", "activation": "silu"}, "timm has one norm_epsilon"),
    ):
        with pytest.raises(UserError, match=f"^{says}"):
            check(model_of("vit", **fields), FORMAT, ())


def test_no_tensor_shows_rotary_positions(timm, torch):
    there = tensors_of(create(timm, torch, "vit_small_patch16_dinov3", SMALL))
    with pytest.raises(UserError, match=r"no tensor shows its rotary positions; put the config\.json of timm"):
        FORMAT.read(there, {})
    for args, says in (
        ({"rope_type": "mrope"}, "rope_type='mrope'"),
        ({"rope_type": "mixed"}, r"rope\.freqs is missing"),
        ({"rope_grid_offset": 1}, "rope_grid_offset=1"),
        ({"global_pool": "map"}, "global_pool='map' with rotary"),
    ):
        with pytest.raises(UserError, match=says):
            convert(there, {"architecture": "vit_small_patch16_dinov3", "model_args": {"num_heads": 2, **args}})


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3_qkvb"])
def test_files_of_dinov3s_authors(name, timm, torch, rng, tmp_path):
    """Their names, a bias of keys that is masked out and NaN, buffers, what only pretraining uses."""
    module = create(
        timm,
        torch,
        name,
        {**SMALL, "embed_dim": 64, "num_heads": 1, "img_size": 256, "patch_size": 64, "global_pool": "token"},
    )
    back = {new: old for old, new in eva.AUTHORS.items()}
    file = {}
    for key, tensor in tensors_of(module).items():
        for new, old in back.items():
            key = key.replace(new, old)
        file[key] = tensor
    for i in range(2):
        q, v = (file.pop(f"blocks.{i}.attn.{part}_bias").read() for part in "qv")
        file[f"blocks.{i}.attn.qkv.bias"] = Tensor.of(np.concatenate([q, np.full_like(q, np.nan), v]))
        mask = np.repeat(np.float32([1, 0, 1]), len(q))
        file[f"blocks.{i}.attn.qkv.bias_mask"] = Tensor.of(mask)
    file |= {
        "rope_embed.periods": Tensor.of(np.ones(16, np.float32)),
        "mask_token": Tensor.of(np.ones((1, 64), np.float32)),
    }
    file |= {"local_cls_norm.weight": Tensor.of(np.ones(64, np.float32))}
    write_safetensors(tmp_path / "dinov3.safetensors", file, {})
    with read.load(tmp_path / "dinov3.safetensors") as found:
        assert (found.model.qkv_bias, found.model.pool, found.model.rotary) == ("qv", "cls", Rope())
        for said in ("keys have no bias", "positions are computed", "pretraining alone uses it", "DINOv3's authors"):
            assert any(said in note for note in found.notes), said
        images = photos(256)
        assert gaps(ours(found, images), theirs(torch, module, images))["pooled"] <= 2e-5
        assert same_bits(
            found.params["encoder/block_1/attention/bias_v"].read(), module.blocks[1].attn.v_bias.detach().numpy()
        )
        rows = verify.verify(found, [tmp_path / "dinov3.safetensors"])
        assert rows and all(row.ok for row in rows), (rows, found.notes)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "eva02_base_patch14_224"])
def test_files_of_eva02s_authors(name, timm, torch, tmp_path):
    """Biases beside maps of their own, a norm called ffn_ln, cosines and sines of every block."""
    sizes = {"embed_dim": 64, "num_heads": 1, "img_size": 224, "patch_size": 56, "mlp_ratio": 1.5}
    module = create(timm, torch, name, {**SMALL, **sizes, "swiglu_align_to": 1})
    back = {new: old for old, new in eva.AUTHORS.items() if "ls" not in old}
    back |= {f".{part}_proj.bias": f".{part}_bias" for part in "qv"}
    file = {}
    for key, tensor in tensors_of(module).items():
        for new, old in back.items():
            key = key.replace(new, old)
        file[key] = tensor
    buffers = [
        f"{start}rope.freqs_{part}" for start in ("", "blocks.0.attn.", "blocks.1.attn.") for part in ("cos", "sin")
    ]
    file |= {name: Tensor.of(np.ones((16, 64), np.float32)) for name in buffers}
    assert "blocks.1.attn.q_bias" in file and "blocks.0.mlp.w3.weight" in file
    write_safetensors(tmp_path / "eva02.safetensors", file, {})
    with read.load(tmp_path / "eva02.safetensors") as found:
        assert (found.model.qkv_bias, found.model.pool) == ("qv", "gap")
        assert found.model.rotary == Rope(10_000, "interleaved", 16)
        assert any("EVA-02's authors" in note for note in found.notes)
        assert found.preprocess.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
        images = photos(224)
        assert gaps(ours(found, images), theirs(torch, module, images))["pooled"] <= 2e-5
        rows = verify.verify(found, [tmp_path / "eva02.safetensors"])
        assert rows and all(row.ok for row in rows), (rows, found.notes)


def test_files_of_beits_authors_have_distances_beside(rng, tmp_path):
    """The index of the table is a buffer in every block, and pretraining's head may be there."""
    fields = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 8, "patch": 8, "num_classes": 3, "positions": "none"}
    model = model_of("vit", **fields, logit_bias="relative(2)", qkv_bias="qv", cls_token=True, pool="cls")
    shapes = describe.shapes(model, 16)
    params = {path: Tensor.of(rng.standard_normal(shape).astype(np.float32)) for path, shape in shapes.items()}
    write.save(Stored(model, params, Preprocess(16, 0.9, "bicubic")), tmp_path / "out", "timm")
    path = tmp_path / "out/model.safetensors"
    with open_tensors(path) as there:
        tensors = {name: Tensor.of(leaf.read()) for name, leaf in there.items()}
    index = [f"blocks.{i}.attn.relative_position_index" for i in range(2)]
    tensors |= dict.fromkeys(index, Tensor.of(np.zeros((5, 5), np.int64)))
    write_safetensors(path, tensors, {})
    with read.load(tmp_path / "out") as found:
        assert f"{', '.join(index)} are left out (distances are counted)" in found.notes
        assert found.params.keys() == params.keys()
