"""A small model of every kind, with random parameters."""

import numpy as np

from vit_jax import models
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Stored
from vit_jax.io.tensors import Tensor
from vit_jax.models import describe

NAMES = ("ant", "bee", "cat")
PREPROCESS = Preprocess(32, 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIZE = {"width": 64, "depth": 2, "heads": 2, "mlp_dim": 96, "patch": 8, "num_classes": 3}
MODELS = {
    "cls": models.create("vit", **SIZE),
    "gap": models.create("vit", **SIZE, pool="gap"),
    "map": models.create("vit", **SIZE, pool="map"),
    "fc_norm": models.create("vit", **SIZE, pool="gap", cls_token=True, final_norm=False, pool_norm=True),
    "tanh": models.create("vit", **SIZE, pre_logits=24, activation="gelu_tanh"),
    "registers": models.create("vit", **SIZE, registers=3, layer_scale=0.1),
    "dinov2": models.create("vit", **SIZE | {"mlp_dim": 256}, registers=4, layer_scale=0.1, pool="cls_gap"),
    "headless": models.create("vit", **SIZE | {"num_classes": 0}),
    "hybrid": models.create("vit", **SIZE | {"patch": 1}, stem=(2, 2, 2, 2), stem_numerics="timm"),
    "topk": models.create("vit", **SIZE, activation="topk(5)"),
    "monarch": models.create("vit", **SIZE, mlp_linear="monarch(2)", qkv_linear="sparse24"),
    "m2": models.create("monarch_mixer", width=64, depth=1, mlp_dim=128, patch=8, num_classes=3),
    "mixer": models.create("mixer", width=64, depth=2, token_dim=32, mlp_dim=256, patch=8, num_classes=3),
}
FOREIGN = ("timm", "hf", "npz", "big_vision", "open_clip")
PAIR = {
    "image_tower": {"name": "vit", **SIZE, "num_classes": 0, "patch_bias": False},
    "text_tower": {"vocab_size": 259, "length": 8, "end_id": 2, "width": 64, "depth": 1, "heads": 2, "mlp_dim": 96},
    "embed_dim": 24,
}


def pretrained(model, rng):
    shapes = describe.shapes(model, 32)
    params = {p: Tensor.of(rng.normal(size=s, scale=0.3).astype(np.float32)) for p, s in shapes.items()}
    names = NAMES[: describe.classes(model)]
    return Stored(model, params, PREPROCESS, names, resize="bicubic", source="memory")


def target(tmp_path, to):
    return tmp_path / ("out.npz" if to in ("npz", "big_vision") else "out")
