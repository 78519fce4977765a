"""timm's ViTs: what no file can say of one, and that ViTs and Mixers are told apart."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.convert import read, verify
from vit_jax.convert.format import check
from vit_jax.convert.rules import back
from vit_jax.convert.timm import FORMAT, mixer, vit
from vit_jax.convert.timm.rules import GREY, LUMA
from vit_jax.io.tensors import Tensor, write_safetensors
from vit_jax.models import create, describe
from vit_jax.types import UserError


def test_families_are_told_apart():
    assert FORMAT.codec(create("vit")) is vit.CODEC and FORMAT.codec(create("mixer")) is mixer.CODEC
    for names, codec in ((("cls_token", "patch_embed.proj.bias"), vit), (("stem.proj.weight", "norm.bias"), mixer)):
        assert [c for c in FORMAT.codecs if c.matches(names)] == [codec.CODEC]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"pool": "cls_gap"}, r"timm has no pool='cls_gap'; it has cls, gap, map: write another format\."),
        ({"pre_logits": 8}, r"timm has no layer before the head \(pre_logits=8\); write another format\."),
        ({"stem": (1,)}, r"timm has no stem=\(1,\); it has \(\), \(2, 2, 2, 2\), .*: write another format\."),
        ({"pool_norm": True}, r"timm has .* not final_norm=True with pool_norm=True; write another format\."),
        ({"pre_norm": True}, r"timm has .* not pre_norm=True with patch_bias=True; write another format\."),
        ({"patch_bias": False}, r"timm has .* not pre_norm=False with patch_bias=False; write another format\."),
        ({"cls_token": True, "pool": "map"}, "timm pools no class token by attention"),
        ({"stem": (), "norm_epsilon": 1e-5}, "timm has no norm_epsilon=1e-05, but 1e-06 and, in a ViT without a stem"),
    ],
)
def test_limits(fields, says):
    with pytest.raises(UserError, match=f"^{says}"):
        check(create("vit", **fields), FORMAT, ())


def test_within_the_limits():
    for fields in ({"norm_epsilon": 1e-5}, {"norm_epsilon": 1e-12}, {"pool": "map", "stem": (3, 4, 9)}):
        check(create("vit", **fields), FORMAT, ())


AVERAGED = {"global_pool": "avg"}


def tensors(rng, channels=3, **more):
    """Of a small ViT with a class token, as masked autoencoders are saved."""
    shapes = {"cls_token": (1, 1, 8), "pos_embed": (1, 17, 8), "patch_embed.proj.weight": (8, channels, 4, 4)}
    shapes |= {f"blocks.0.{k}.weight": (8, 8) for k in ("attn.proj",)} | {"blocks.0.attn.qkv.weight": (24, 8)}
    shapes |= {"blocks.0.attn.qkv.bias": (24,), "blocks.0.mlp.fc1.weight": (16, 8), "blocks.0.mlp.fc1.bias": (16,)}
    shapes |= {"blocks.0.mlp.fc2.weight": (8, 16), "blocks.0.mlp.fc2.bias": (8,), "blocks.0.attn.proj.bias": (8,)}
    norms = ("norm", "blocks.0.norm1", "blocks.0.norm2")
    shapes |= {f"{n}.{k}": (8,) for n in norms for k in ("weight", "bias")} | {"patch_embed.proj.bias": (8,)} | more
    return {name: Tensor.of(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}


def test_the_decoder_of_a_masked_autoencoder_is_left_out(rng, tmp_path):
    decoder = {"decoder_embed.weight": (4, 8), "decoder_pos_embed": (1, 17, 4), "decoder_blocks.0.norm1.bias": (4,)}
    there = tensors(rng, mask_token=(1, 1, 4), **decoder, **{"decoder_norm.bias": (4,), "decoder_pred.weight": (48, 4)})
    write_safetensors(tmp_path / "a.safetensors", {f"model.{name}": x for name, x in there.items()}, {})
    with read.load(tmp_path / "a.safetensors") as found:
        assert found.model.pool == "cls" and found.preprocess.size == 16
        assert any("decoder_embed" in note and "(the decoder of masked pretraining)" in note for note in found.notes)
    there["decoder.weight"] = Tensor.of(np.ones(3, np.float32))  # which is none of its
    write_safetensors(tmp_path / "b.safetensors", there, {})
    with pytest.raises(UserError, match=r"decoder.weight is left over"):
        read.load(tmp_path / "b.safetensors").__enter__()


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("lm_head.weight", "lm_head.bias"), "pretraining alone uses it"),  # BEiT, EVA
        (("head.0.weight", "head.1.running_mean", "head.6.bias"), "pretraining alone uses it"),  # MoCo v3
        (("head.mlp.0.weight", "head.last_layer.weight_g"), "pretraining alone uses it"),  # DINO
        (("cls_pt_layers.0.norm1.weight",), "pretraining alone uses it"),  # BEiT v2
        (("masked_embed",), "masked pretraining alone uses it"),  # iBOT
    ],
)
def test_what_training_put_beside_is_named_once(names, why, rng, tmp_path):
    there = tensors(rng, **dict.fromkeys(names, (3,)))
    write_safetensors(tmp_path / "a.safetensors", {f"state_dict.module.{name}": x for name, x in there.items()}, {})
    with read.load(tmp_path / "a.safetensors") as found:
        assert found.model.num_classes == 0
        assert [note for note in found.notes if any(name in note for name in names)] == [
            f"{', '.join(sorted(names))} {'are' if names[1:] else 'is'} left out ({why})"
        ]


def test_modules_that_training_wrapped(rng, tmp_path):
    """Block by block, as torch.compile and FSDP may."""
    there = tensors(rng)
    wrapped = {f"model.{name.replace('0.attn', '0._orig_mod.attn._checkpoint_wrapped_module')}": x for name, x in
               there.items()}  # fmt: skip
    write_safetensors(tmp_path / "a.safetensors", there, {})
    write_safetensors(tmp_path / "b.safetensors", wrapped, {})
    with read.load(tmp_path / "a.safetensors") as plain, read.load(tmp_path / "b.safetensors") as found:
        assert found.model == plain.model and "its modules are wrapped (_orig_mod, _checkpoint_wrapped_module)" in (
            found.notes
        )
        for path, tensor in plain.params.items():
            np.testing.assert_array_equal(found.params[path].read(), tensor.read(), err_msg=path)


def test_weights_for_grey_images(rng, tmp_path):
    """They see what Pillow's mode L makes of colours."""
    there = tensors(rng, channels=1)
    write_safetensors(tmp_path / "a.safetensors", there, {})
    with read.load(tmp_path / "a.safetensors") as found:
        tree = found.tree(jnp.asarray)
        assert "its images have one channel: those here are made grey (0.299 R + 0.587 G + 0.114 B)" in found.notes
    image = rng.standard_normal((2, 16, 16, 3), np.float32)
    grey = np.repeat(np.sum(image * LUMA, -1, keepdims=True), 3, -1)
    one, other = (found.model.apply({"params": tree}, x) for x in (image, grey))
    np.testing.assert_allclose(one, other, atol=1e-5)
    x = there["patch_embed.proj.weight"].read()
    np.testing.assert_allclose(GREY.back(*GREY.into(x))[0], x, atol=1e-6)


COUNTS = {
    "deit3_small_patch16_224": 22_059_496,
    "deit3_base_patch16_224": 86_585_320,
    "deit3_large_patch16_224": 304_374_760,
    "beitv2_base_patch16_224": 86_530_984,
    "vit_base_patch16_siglip_256": 92_930_304,
    "vit_so400m_patch14_siglip_224": 427_680_704,
    "vit_small_patch16_rope_224": 21_984_232,
    "vit_base_patch16_rope_224": 86_434_792,
    "vit_base_patch16_rope_ape_224": 86_585_320,
    "vit_small_patch16_rope_mixed_224": 21_988_840,
    "vit_base_patch16_rope_mixed_224": 86_444_008,
    "vit_base_patch16_rope_mixed_ape_224": 86_594_536,
    "vit_medium_patch16_rope_reg1_gap_256": 38_743_016,
    "vit_medium_patch16_gap_256": 38_861_288,
    "vit_mediumd_patch16_reg4_gap_256": 64_109_032,
    "vit_little_patch16_reg4_gap_256": 22_516_008,
    "vit_wee_patch16_reg1_gap_256": 13_422_568,
    "vit_pwee_patch16_reg1_gap_256": 15_253_480,
    "vit_betwixt_patch16_reg4_gap_256": 60_398_440,
    "vit_so150m_patch16_reg4_gap_256": 134_131_560,
    "vit_so150m2_patch16_reg1_gap_256": 136_059_560,
    "flexivit_small": 22_061_416,
    "flexivit_base": 86_589_160,
    "flexivit_large": 304_355_304,
}
"""Parameters as timm 1.0.31 has them, of families without names of their own here."""


@pytest.mark.thorough
@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_timms_families(name, timm, torch):
    """Those that are read become a model whose file has as many again."""
    module = timm.create_model(name, device="meta")
    there = {k: Tensor(tuple(v.shape), np.dtype("f4"), lambda v=v: np.zeros(v.shape, "f4")) for k, v in
             module.state_dict().items()}  # fmt: skip
    images = {"input_size": list(module.pretrained_cfg["input_size"])}
    found = FORMAT.read(there, {"config.json": {"architecture": name, "pretrained_cfg": images}})
    model = describe.build(found.model)
    shapes = describe.shapes(model, found.preprocess.size)
    ours = {path: Tensor(shape, np.dtype("f4"), lambda: pytest.fail("was read")) for path, shape in shapes.items()}
    again = back(FORMAT.rules(model, found.layout), ours, name=name)
    assert {k: t.shape for k, t in again.items()} == {k: t.shape for k, t in there.items()}
    assert sum(math.prod(t.shape) for t in again.values()) == COUNTS[name]


@pytest.mark.parametrize(
    "more", [{"in_chans": 1}, {"global_pool": "avg"}, {"global_pool": "avg", "class_token": False}]
)
def test_timms_own_on_what_a_file_alone_tells(more, timm, torch, tmp_path):
    sizes = {"embed_dim": 64, "depth": 1, "num_heads": 1, "img_size": 32, "num_classes": 3}
    module = timm.create_model("vit_tiny_patch16_224", **sizes, **more).eval()
    args = {"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}, "best_acc1": torch.tensor(1.0)}
    torch.save(args, tmp_path / "model_best.pth.tar")
    with read.load(tmp_path / "model_best.pth.tar") as found:
        rows = verify.verify(found, [tmp_path / "model_best.pth.tar"])
        assert rows and all(row.ok for row in rows), (rows, found.notes)
