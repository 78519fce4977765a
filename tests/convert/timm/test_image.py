"""timm's own models with random weights everywhere, against ours with the same."""

import functools
import json
import pathlib
import sys
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.convert import torch_reference
from tests.convert.cases import rest_slow
from tests.convert.timm_models import (
    check_equal,
    convert,
    create,
    gaps,
    ours,
    photos,
    randomise,
    same_bits,
    tensors_of,
    theirs,
)  # fmt: skip
from vit_jax import models
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import back
from vit_jax.convert.timm import FORMAT, image, vit
from vit_jax.convert.timm.rules import Layout
from vit_jax.io.tensors import Tensor, open_tensors, write_safetensors
from vit_jax.layers.embed import resize_positions
from vit_jax.models import describe
from vit_jax.types import UserError

SMALL: dict[str, Any] = dict(embed_dim=32, depth=2, num_heads=2, mlp_ratio=3, patch_size=8, img_size=32, num_classes=5)
DINO = "vit_small_patch14_reg4_dinov2"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cls": ("vit_base_patch16_224", SMALL),
    "scale": ("deit3_small_patch16_224", SMALL),  # positions of the grid alone, layer scales
    "flexivit": ("flexivit_small", SMALL),
    "registers": (DINO, SMALL | {"num_classes": 0, "act_layer": "quick_gelu"}),
    "placed": (DINO, SMALL | {"no_embed_class": False}),  # registers with positions
    "gap": ("vit_medium_patch16_gap_256", SMALL | {"num_heads": 4, "act_layer": "gelu_tanh"}),  # no bias of qkv
    "gap_registers": ("vit_so150m_patch16_reg4_gap_256", SMALL),
    "fc_norm": ("vit_tiny_patch16_224", SMALL | {"global_pool": "avg"}),  # a class token beside the grid, as MAE's
    "fc_norm_registers": ("vit_base_patch16_reg4_gap_256", SMALL),
    "fc_norm_cls": ("vit_tiny_patch16_224", SMALL | {"fc_norm": True}),
    "fc_norm_grid": ("vit_tiny_patch16_224", SMALL | {"global_pool": "avg", "class_token": False}),
    "map": ("vit_base_patch16_siglip_224", SMALL | {"act_layer": "gelu_tanh"}),
    "map_registers": ("test_vit3", SMALL),
    "bare": ("vit_intern300m_patch14_448", SMALL | {"final_norm": False, "pre_norm": True}),
    "bare_gap": ("vit_tiny_patch16_224", SMALL | {"final_norm": False, "global_pool": "avg"}),
    "epsilon": ("vit_base_patch32_clip_quickgelu_224", SMALL | {"pre_norm": False}),
    "clip": ("vit_base_patch32_clip_quickgelu_224", SMALL),  # a norm before the blocks, patches without a bias
    "stem": ("vit_tiny_r_s16_p8_224", SMALL | {"patch_size": 2}),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "parallel": ("vit_pwee_patch16_reg1_gap_256", SMALL | {"num_heads": 4}),
    "swiglu": ("vit_giant_patch14_reg4_dinov2", SMALL | {"mlp_ratio": 4}),
    "qk_norm": ("vit_tiny_patch16_224", SMALL | {"qk_norm": True}),
    "dinov3": ("vit_small_patch16_dinov3", SMALL | {"global_pool": "token"}),  # no position but rotary ones
    "dinov3_gates": ("vit_small_plus_patch16_dinov3_qkvb", SMALL),  # biases of queries and values
    "eva": ("eva_giant_patch14_224", SMALL),  # no rotary positions
    "eva02": ("eva02_tiny_patch14_224", SMALL | {"num_heads": 4}),
    "eva02_norms": ("eva02_base_patch14_224", SMALL),  # maps of their own, a norm in the MLP
    "beit": ("beitv2_base_patch16_224", SMALL),
    "beit_placed": (
        "beit_base_patch16_224",
        SMALL | {"use_abs_pos_emb": True, "global_pool": "token", "swiglu_mlp": True},
    ),
    "rope": ("vit_small_patch16_rope_ape_224", SMALL),
    "rope_registers": ("vit_medium_patch16_rope_reg1_gap_256", SMALL),
    "rope_mixed": ("vit_small_patch16_rope_mixed_ape_224", SMALL),
    "rope_mixed_rows": ("vit_small_patch16_rope_mixed_224", SMALL | {"rope_grid_indexing": "ij"}),
}
SLOW_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "r26": ("vit_small_r26_s32_224", SMALL | {"patch_size": 1, "img_size": 64}),
    "r50": ("vit_base_r50_s16_224", SMALL | {"patch_size": 1, "img_size": 32}),
    "r50_32": ("vit_large_r50_s32_224", SMALL | {"patch_size": 1, "img_size": 64}),
    **{name: (name, {}) for name in ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch32_224")},
    **{name: (name, {}) for name in ("mixer_s32_224", "mixer_b16_224", "vit_small_patch14_reg4_dinov2")},
}
FAST = (
    "cls", "scale", "placed", "parallel", "gap", "fc_norm", "map", "stem", "bare", "distilled", "swiglu",
    "dinov3_gates", "eva02_norms", "beit", "rope", "rope_mixed",
)  # fmt: skip


def save(pretrained: Stored, folder: pathlib.Path) -> types.SimpleNamespace:
    writing = FORMAT.write(pretrained)
    rules = FORMAT.rules(pretrained.model, writing.layout)
    tensors = {**back(rules, pretrained.params, name="it"), **writing.extra}
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(writing.about["config.json"]))
    return types.SimpleNamespace(tensors=tensors, writing=writing, config=writing.about["config.json"])


def build_peer(path: pathlib.Path) -> Any:
    """timm's ViT; where no config.json says what it is, that is inferred."""
    return image.build_peer(path, vit.CODEC, vit.content)


@pytest.mark.parametrize("case", rest_slow(CASES, *FAST))
def test_logits_tokens_and_every_block_are_timms(case, timm, torch):
    module = create(timm, torch, *CASES[case])
    if case == "epsilon":  # small enough for 1e-5 and 1e-6 to differ by percents
        with torch.no_grad():
            for p in (module.cls_token, module.pos_embed, *module.patch_embed.parameters()):
                p.mul_(0.01)
    pretrained = check_equal(torch, module, module.about)
    first = module.blocks[0]
    assert pretrained.model.norm_epsilon == (first.in_norm if case == "parallel" else first.norm1).eps
    assert pretrained.model.heads == (first if case == "parallel" else first.attn).num_heads
    placed = [note for note in pretrained.notes if "are added to the registers" in note]
    assert len(placed) == (case in ("placed", "gap_registers", "map_registers"))
    assert len(pretrained.notes) == len(placed) + (case == "gap")  # its missing bias


def test_bottlenecks(timm, torch):
    """A stem of two stages, fewer than any that timm has a name for."""
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import _resnetv2

    embed = functools.partial(HybridEmbed, backbone=_resnetv2((1, 2)))
    module = randomise(torch, VisionTransformer(**SMALL | {"patch_size": 1}, embed_layer=embed))
    about = {"architecture": "vit_small_r26_s32_224", "model_args": {"num_heads": 2}}
    model = check_equal(torch, module, about).model
    assert (model.stem, model.stem_numerics, model.patch) == ((1, 2), "timm", 1)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW_CASES)
def test_full_sizes_and_deep_stems(case, timm, torch):
    module = create(timm, torch, *SLOW_CASES[case])
    check_equal(torch, module, module.about)


VIT: dict[str, Any] = dict(name="vit", width=32, depth=2, heads=2, mlp_dim=96, patch=8, num_classes=3)
DINOV3 = {"rotary": "rope", "positions": "none", "qkv_bias": "none", "norm_epsilon": 1e-5}
WRITTEN: dict[str, dict[str, Any]] = {
    "cls": VIT,
    "cls_nowhere": VIT,  # a class token whose position is zero
    "features": VIT | {"num_classes": 0, "layer_scale": 0.0},
    "registers": VIT | {"registers": 3},
    "registers_nowhere": VIT | {"registers": 3, "layer_scale": 1e-4, "norm_epsilon": 1e-5},
    "gap": VIT | {"registers": 2, "pool": "gap", "activation": "quick_gelu", "mlp_dim": 67},
    "map": VIT | {"registers": 2, "pool": "map", "activation": "gelu_tanh"},
    "clip": VIT | {"pre_norm": True, "patch_bias": False, "norm_epsilon": 1e-5},
    "clip_finer": VIT | {"pre_norm": True, "patch_bias": False, "final_norm": False},
    "stem": VIT | {"stem": (), "stem_numerics": "timm", "patch": 2},
    "relu": VIT | {"activation": "relu", "heads": 4},
    "distilled": VIT | {"distilled": True, "qk_norm": "layer"},
    "swiglu": VIT | {"ffn": "gated", "activation": "silu", "registers": 2, "layer_scale": 1e-5},
    "dinov3": VIT | DINOV3 | {"ffn": "gated", "activation": "silu", "layer_scale": 1e-5, "registers": 2},
    "rope": VIT | {"rotary": "rope(50, interleaved, 5, xy)", "pool": "gap", "final_norm": False, "pool_norm": True},
    "rope_mixed": VIT | {"rotary": "rope_mixed(7, yx)", "registers": 1},
    "beit": VIT | {"qkv_bias": "qv", "logit_bias": "relative(4)", "positions": "none", "layer_scale": 0.1},
    "eva": VIT | {"qkv_bias": "qv", "ffn": "gated(None, 1e-6)", "activation": "silu", "cls_token": True, "pool": "gap"},
    "mixer": {"name": "mixer_s32", "depth": 8, "token_dim": 24, "mlp_dim": 65, "num_classes": 3},
}
NAMES = ("a cat", "ein Hund", "\N{BIRD}")
IMAGES = dict(crop=0.95, interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def drawn(case: str) -> Stored:
    """A model of ours whose every parameter is drawn."""
    fields = WRITTEN[case]
    model = models.create(**fields)
    size = 64 if fields["name"].startswith("mixer") else 32
    rng = np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        x = rng.standard_normal(shape, np.float32)
        if path.endswith("kernel"):
            return x * np.float32(0.6 / np.prod(shape[:-1]) ** 0.5)
        return x * np.float32(0.1) + np.float32("scale" in path.split("/")[-1])

    params = {path: draw(path, shape) for path, shape in describe.shapes(model, size).items()}
    if case.endswith("nowhere"):
        params["position/embedding"][:, 0] = 0
    names = NAMES if model.num_classes else ()
    tensors = {path: Tensor.of(x) for path, x in params.items()}
    return Stored(model, tensors, Preprocess(size, **IMAGES), names, source="it")


@pytest.mark.parametrize("case", rest_slow(WRITTEN, "cls", "registers_nowhere", "map", "clip", "stem"))
def test_timm_builds_what_is_written(case, timm, torch, tmp_path):
    pretrained = drawn(case)
    done = save(pretrained, tmp_path)
    assert done.writing.notes == ()
    module = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    state = module.state_dict()
    assert state.keys() == done.tensors.keys()
    assert all(same_bits(state[k].numpy(), np.asarray(t.read())) for k, t in done.tensors.items())
    images = photos(pretrained.preprocess.size)
    assert max(gaps(ours(pretrained, images), theirs(torch, module, images)).values()) <= 2e-5
    assert module.get_submodule(module.pretrained_cfg["first_conv"]).in_channels == 3
    assert module.pretrained_cfg["label_names"] == list(NAMES) if pretrained.class_names else True
    with open_tensors(tmp_path / "model.safetensors") as there:
        again = convert(there, done.config)
        assert again.pretrained.preprocess == pretrained.preprocess
        assert again.pretrained.class_names == pretrained.class_names
        scale = {"layer_scale": 1e-5} if case == "features" else {}  # zero would mean none
        assert again.pretrained.model == pretrained.model.clone(**scale)
        assert again.pretrained.notes == ()
        found = again.pretrained.params
        assert found.keys() == pretrained.params.keys()
        assert all(same_bits(found[k].read(), pretrained.params[k].read()) for k in found)


@pytest.mark.parametrize(
    "case", rest_slow(("cls", "features", "registers_nowhere", "gap", "map"), "features", "gap", "map")
)
def test_what_is_written_computes_what_timm_computes(case, tmp_path):
    """As timm's code does, without timm."""
    pretrained, images = drawn(case), photos(32)
    done = save(pretrained, tmp_path)
    args, epsilon = done.config["model_args"], pretrained.model.norm_epsilon
    settings = args["global_pool"], args["num_heads"], epsilon, args["act_layer"]
    want, blocks = torch_reference.timm_vit(images, torch_reference.wide(done.tensors), *settings)
    found = ours(pretrained, images)
    assert np.std(want) > 0.05
    for a, b in zip((want, *blocks), (found["logits"], *(found[f"block_{i}"] for i in range(2))), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-5)


def test_timm_prepares_images_as_the_config_says(timm, tmp_path):
    done = save(drawn("cls"), tmp_path)
    module = timm.create_model(f"local-dir:{tmp_path}")
    told = timm.data.resolve_model_data_config(module)
    assert list(told["input_size"]) == [3, 32, 32] and told["crop_mode"] == "center"
    assert (told["interpolation"], told["crop_pct"]) == (IMAGES["interpolation"], IMAGES["crop"])
    assert (tuple(told["mean"]), tuple(told["std"])) == (IMAGES["mean"], IMAGES["std"])
    assert done.config["architecture"] == "vit_base_patch16_224"


def test_timm_fine_tunes_what_is_written(timm, torch, tmp_path):
    """Another head, another number of channels: timm finds what it has to change."""
    save(drawn("stem"), tmp_path)
    module = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7, in_chans=1)
    first = np.asarray(drawn("stem").params["stem/conv_root/kernel"].read())
    np.testing.assert_allclose(module.patch_embed.backbone.conv.weight[:, 0].detach().permute(1, 2, 0), first.sum(2))
    assert module.head.out_features == 7


def test_the_layout_follows_the_position_of_the_class_token():
    want = {"cls": 1, "cls_nowhere": 0, "registers": 4, "registers_nowhere": 0}
    assert {case: FORMAT.write(drawn(case)).layout for case in want} == {k: Layout(n) for k, n in want.items()}


def test_fixed_positions_are_written_as_numbers(timm, torch, tmp_path):
    model = models.create(**VIT, positions="sincos2d", registers=2)
    learned = drawn("cls").params
    params = {k: learned[k] for k in describe.shapes(model, 32) if k != "registers"}
    params["registers"] = Tensor.of(np.ones((1, 2, 32), np.float32))
    pretrained = Stored(model, params, Preprocess(32, 1.0, "bicubic"))
    save(pretrained, tmp_path)
    images = photos(32)
    found = build_peer(tmp_path / "model.safetensors")
    assert gaps(ours(pretrained, images), theirs(torch, found, images))["logits"] <= 2e-5


ALIEN = {
    "gmixer_12_224": "gated MLP",
    "aimv2_large_patch14_224": "norm of patches",
    "eva02_enormous_patch14_clip_224": "norms after the branches",
    "eva02_base_patch16_clip_224": "norms inside of attention",
    "vit_small_patch16_lingbot": "architecture='vit_small_patch16_lingbot'",
    "vit_pe_core_gigantic_patch14_448": "rotary positions, which no tensor shows",
    "vit_relpos_small_patch16_224": "relative positions",
    "vit_small_resnet26d_224": "stem of another kind",
    "vit_base_mci_224": "stem of another kind",
    "vit_small_patch16_18x2_224": "parallel blocks of another kind",
    "resmlp_12_224": "ResMLP",
    "gmlp_s16_224": "gMLP",
    "cait_xxs24_224": "CaiT",
    "vit_so150m_patch16_reg4_map_256": "over the grid alone",
}


@pytest.mark.parametrize("name", ALIEN)
def test_models_with_parts_that_ours_lack(name, timm, torch):
    module = timm.create_model(name, device="meta")
    there = {k: Tensor(tuple(v.shape), np.dtype("f4"), lambda: np.zeros(0)) for k, v in module.state_dict().items()}
    assert FORMAT.matches(there)
    with pytest.raises(UserError, match=ALIEN[name]) as e:
        FORMAT.read(there, {"config.json": {"architecture": name}})
    assert str(e.value).endswith("can be converted.") and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("args", "missing", "says"),
    [
        ({"final_norm": False}, "", "no config.json says final_norm=False"),
        ({"final_norm": False, "pre_norm": True}, "", "no config.json says final_norm=False"),
        ({}, "norm.", "no config.json says final_norm=False"),
        ({}, "patch_embed.proj.bias", r"patches without a bias and a norm after them \(pre_norm\)"),
        (
            {"fc_norm": True, "global_pool": "avg"},
            "patch_embed.proj.bias",
            r"patches without a bias and a norm after them .*",
        ),
    ],
)
def test_norms_and_biases_that_nothing_tells_of(args, missing, says, timm, torch):
    there = tensors_of(timm.create_model("vit_tiny_patch16_224", **SMALL, **args))
    if missing:
        there = {name: x for name, x in there.items() if not name.startswith(missing)}
    with pytest.raises(UserError, match=f"^[^\n]*{says}[,]? cannot be expressed here .* can be converted\\.$"):
        FORMAT.read(there, {})


ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_gap_224", "vit_base_patch32_siglip_256", "vit_large_patch16_siglip_gap_512", "test_vit",
        "vit_intern300m_patch14_448",
    ],
)  # fmt: skip
def test_what_only_the_architecture_tells(name, timm, torch):
    module = timm.create_model(name, device="meta")
    there = {k: Tensor(tuple(v.shape), np.dtype("f4"), lambda: np.zeros(0)) for k, v in module.state_dict().items()}
    found = FORMAT.read(there, {"config.json": {"architecture": name}})
    block = module.blocks[0]
    want = (block.attn.num_heads, ACTIVATIONS[type(block.mlp.act).__name__], block.norm1.eps)
    assert tuple(found.model[key] for key in ("heads", "activation", "norm_epsilon")) == want
    assert found.model["final_norm"] == (type(module.norm).__name__ != "Identity")


@pytest.mark.slow
def test_every_architecture_is_read_as_timm_builds_it_or_refused(timm, torch):
    """What no tensor shows; and no class of another family passes for a ViT."""
    modules = (
        "vision_transformer", "vision_transformer_hybrid", "mlp_mixer", "deit", "eva", "beit", "cait", "hiera",
        "vision_transformer_relpos", "swin_transformer", "mvitv2", "vitamin",
    )  # fmt: skip
    read = []
    for name in (name for module in modules for name in timm.list_models(module=module)):
        module = timm.create_model(name, device="meta")
        there = {k: Tensor(tuple(v.shape), np.dtype("f4"), lambda v=v: np.zeros(v.shape)) for k, v in
                 module.state_dict().items()}  # fmt: skip
        try:
            found = FORMAT.read(there, {"config.json": {"architecture": name}})
        except UserError:
            continue
        model = describe.build(found.model)
        assert {n for r in FORMAT.rules(model, found.layout) for n in r.theirs} == there.keys()
        block = module.blocks[0]
        assert type(module).__name__ in ("VisionTransformer", "VisionTransformerDistilled", "Eva", "Beit", "MlpMixer")
        plain = not hasattr(block, "in_norm")  # else its branches are side by side
        norm, heads = (block.norm1, getattr(block, "attn", None)) if plain else (block.in_norm, block)
        act = getattr(block, "mlp", getattr(block, "mlp_channels", None)).act if plain else block.mlp_act
        assert (model.norm_epsilon, model.activation) == (norm.eps, ACTIVATIONS[type(act).__name__]), name
        assert heads is None or model.heads == heads.num_heads, name
        read.append(name)
    assert len(read) > 100


def broken(there: dict[str, Tensor], drop: str = "", **add: tuple[int, ...]) -> dict[str, Tensor]:
    new = {k.replace("__", "."): Tensor.of(np.ones(shape, np.float32)) for k, shape in add.items()}
    return {k: v for k, v in there.items() if k != drop} | new


def test_damaged_or_odd_files(timm, torch):
    there = tensors_of(create(timm, torch, *CASES["cls"]))
    for files, words in (
        (broken(there, "blocks.0.mlp.fc1.weight"), "lack blocks.0.mlp.fc1.weight"),
        (broken(there, patch_embed__proj__weight=(32, 4, 8, 8)), r"\(32, 4, 8, 8\).* 3 channels"),
        (broken(there, patch_embed__proj__weight=(32, 3, 8, 4)), "square patches"),
        (broken(there, freqs=(2, 2, 16), freqs_t_x=(16,)), "rotary positions of another kind"),
        (broken(there, patch_embed__proj__weight=(32, 192)), r"\(32, 192\).* 4 axes"),
        (broken(there, pos_embed=(17,)), r"\(17,\).* 3 axes"),
        (broken(there, pos_embed=(1, 19, 32)), "18 positions, no square grid"),
        (broken(there, "pos_embed"), "learned positions"), (broken(there, "patch_embed.proj.bias"), "patches without"),
        (broken(there, "blocks.0.norm1.bias"), "RMSNorm"), (broken(there, "blocks.0.mlp.fc1.bias"), "maps without"),
        (broken(there, attn_pool__latent=(1, 1, 32)), "'map' with a class token"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            convert(files, None)
    for name, words in (
        ("blocks.0.attn.q_norm.weight", "attn.k_norm.weight"), ("blocks.1.attn.norm.bias", "norms inside"),
        ("blocks.0.attn.lambda_q1", "differential"), ("pre_logits.fc.bias", "a layer before the head"),
        ("blocks.0.mlp.w12.weight", "gated"), ("layers.0.x", "stages"), ("surprise", "surprise is left over"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            convert(broken(there, **{name: (3,)}), None)
    assert convert(broken(there, mask_token=(1, 32)), None).pretrained.notes[-1].startswith("mask_token is left out")
    for args, words in (
        ({"global_pool": "avg"}, "global_pool='avg' with a class token"),
        ({"global_pool": "prr"}, "'prr'"),
        ({"act_layer": "mish"}, "act_layer='mish'.*gelu_tanh"),
        ({"norm_layer": "rmsnorm"}, "norm_layer='rmsnorm'"),
    ):
        with pytest.raises(UserError, match=words):
            convert(there, {"architecture": "vit_base_patch16_224", "model_args": args})


def test_pools_over_other_tokens_are_refused(timm, torch):
    there = tensors_of(create(timm, torch, *CASES["gap_registers"]))
    about: dict[str, Any] = {"architecture": "vit_base_patch16_224", "model_args": {"pool_include_prefix": True}}
    with pytest.raises(UserError, match="over registers and grid"):
        convert(there, about)
    with pytest.raises(UserError, match="'map' over the grid alone"):
        convert(tensors_of(create(timm, torch, *CASES["map_registers"])), None)


def test_rows_that_could_be_two_grids(timm, torch):
    """Nine rows and five tokens before the grid: 3x3 alone, or 2x2 behind them."""
    args = SMALL | {"img_size": 16, "no_embed_class": False}
    there = tensors_of(create(timm, torch, DINO, args))
    for given, size in (({}, 24), ({"no_embed_class": False}, 16), ({"no_embed_class": True}, 24),
                        ({"img_size": 16}, 16), ({"img_size": [24, 24]}, 24)):  # fmt: skip
        found = convert(there, {"architecture": DINO, "model_args": given | {"num_heads": 2}})
        assert found.pretrained.preprocess.size == size, given
    about = {"architecture": DINO, "pretrained_cfg": {"input_size": [3, 16, 16]}}
    assert convert(there, about).pretrained.preprocess.size == 16


def test_registers_without_a_position_keep_the_sign_of_zero(timm, torch):
    module = create(timm, torch, *CASES["placed"])
    with torch.no_grad():
        module.pos_embed[:, 1:5] = 0
        module.reg_token.fill_(-0.0)
    found = convert(tensors_of(module), module.about)
    assert found.pretrained.notes == ()
    assert same_bits(found.pretrained.params["registers"].read(), np.full((1, 4, 32), -0.0, np.float32))


def test_peer_of_a_folder_a_file_and_weights_alone(timm, torch, tmp_path):
    """With our config.json, with timm's own that lacks the arguments, as one file, and without any."""
    pretrained = drawn("registers")
    done = save(pretrained, tmp_path)
    images = photos(32)
    want = ours(pretrained, images)["logits"]
    weights = tmp_path / "model.safetensors"
    assert np.abs(FORMAT.peer(weights, pretrained.model)(images) - want).max() <= 2e-5
    alone = tmp_path / "alone" / "a.safetensors"
    alone.parent.mkdir()
    alone.write_bytes(weights.read_bytes())
    assert np.abs(FORMAT.peer(alone, pretrained.model)(images) - want).max() <= 2e-5
    assert build_peer(alone).blocks[0].attn.num_heads == 1  # assumed
    (alone.parent / "config.json").write_text('{"model_type": "vit"}')  # of another project
    assert np.abs(FORMAT.peer(alone, pretrained.model)(images) - want).max() <= 2e-5
    alone.with_suffix(".json").write_text(json.dumps({"config.json": done.config}))
    tensors = {**done.tensors, "mask_token": Tensor.of(np.ones((1, 32), np.float32))}
    write_safetensors(alone, tensors, {})
    module = build_peer(alone)
    assert module.blocks[0].attn.num_heads == 2 and not module.training
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_peer_of_a_foreign_folder(timm, torch, tmp_path):
    module = randomise(torch, timm.create_model("test_vit", img_size=32, num_classes=4))
    write_safetensors(tmp_path / "model.safetensors", tensors_of(module), {})
    config = {"architecture": "test_vit", "num_classes": 4, "pretrained_cfg": {"input_size": [3, 160, 160]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    images = photos(32)
    again = FORMAT.peer(tmp_path / "model.safetensors", models.create("vit"))(images)
    assert np.array_equal(again, theirs(torch, module, images)["logits"])
    for wrong, words in (("vit_tiny_patch16_224", "blocks.6"), ("vit_nonesuch", "vit_nonesuch")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": wrong}))
        with pytest.raises(UserError, match=words):
            build_peer(tmp_path / "model.safetensors")


def test_without_timm(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm.*: pip install '.*\[torch\]'"):
        build_peer(tmp_path / "model.safetensors")


def test_positions_are_resized_as_by_pillow():
    """Whose bicubic filter is timm's: antialiased, with a = -0.5."""
    rows = np.random.default_rng(0).standard_normal((1, 1 + 49, 6), np.float32)
    for new in (4, 9):
        found = np.asarray(resize_positions(jnp.asarray(rows), (7, 7), (new, new), 1, FORMAT.resize))
        np.testing.assert_array_equal(found[:, :1], rows[:, :1])
        for i in range(6):
            channel = Image.fromarray(rows[0, 1:, i].reshape(7, 7))
            want = np.asarray(channel.resize((new, new), Image.Resampling.BICUBIC))
            np.testing.assert_allclose(found[0, 1:, i].reshape(new, new), want, atol=5e-6)


def test_positions_are_resized_as_timm_does(timm, torch):
    from timm.layers import resample_abs_pos_embed

    rows = np.random.default_rng(0).standard_normal((1, 1 + 49, 6), np.float32)
    for new in (4, 9):
        want = resample_abs_pos_embed(torch.from_numpy(rows), [new, new], num_prefix_tokens=1).numpy()
        found = resize_positions(jnp.asarray(rows), (7, 7), (new, new), 1, FORMAT.resize)
        assert np.abs(np.asarray(found) - want).max() <= 5e-6
