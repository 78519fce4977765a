"""Tiny models of open_clip's, in the folders that open_clip saves, with every parameter random."""

import copy
import json

import numpy as np
import safetensors.numpy

from vit_jax import models

VISION = {"image_size": 16, "layers": 2, "width": 128, "patch_size": 8, "mlp_ratio": 1.5}
TEXT = {"context_length": 7, "vocab_size": 40, "width": 64, "heads": 4, "layers": 2, "mlp_ratio": 2.0}
TRUNK = "vit_tiny_siglip_16"
TRUNK_FIELDS = {"name": "vit", "patch": 8, "width": 128, "depth": 2, "heads": 2, "mlp_dim": 192, "pool": "map"}
DECODER = {"context_length": 7, "vocab_size": 40, "width": 64, "heads": 4, "layers": 2}
POOLER = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 6, "output_tokens": True}
CONFIGS = {
    "clip": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "quick": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "custom": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": VISION
        | {"no_ln_pre": True, "head_width": 32, "ls_init_value": 0.1, "norm_kwargs": {"eps": 1e-3}},
        "text_cfg": TEXT
        | {"pool_type": "eos", "eos_id": 5, "act_kwargs": {"approximate": "tanh"}, "proj_bias": True}
        | {"ls_init_value": 0.2},
    },
    "siglip": {
        "embed_dim": 128,
        "init_logit_bias": -10,
        "init_logit_scale": 2.302585092994046,
        "custom_text": True,
        "vision_cfg": {"image_size": 16, "timm_model_name": TRUNK, "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": TEXT
        | {"width": 128, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        | {"norm_kwargs": {"eps": 1e-6}},
    },
    "trunk": {  # timm's own classifier as the map to the embedding
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"image_size": 16, "timm_model_name": TRUNK, "timm_pool": "map", "timm_proj": None},
        "text_cfg": TEXT | {"pool_type": "first", "no_causal_mask": True},
    },
    "coca": {
        "embed_dim": 64,
        "custom_text": True,
        "vision_cfg": VISION | POOLER,
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": DECODER,
    },
    "narrow": {  # images as wide as the embedding: one weight for queries, keys and values of the pooling
        "embed_dim": 64,
        "quick_gelu": True,
        "custom_text": True,
        "vision_cfg": VISION | POOLER | {"width": 64, "head_width": 16},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": DECODER | {"heads": 2, "layers": 1},
    },
}
IMAGES = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "shortest"}


def register(timm):
    """Makes timm know the tower of "siglip", which is as SigLIP's but tiny."""
    if timm.is_model(TRUNK):  # of an earlier test in this process
        return
    from timm.models.vision_transformer import VisionTransformer

    def make(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
        sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5}
        model = VisionTransformer(**sizes | {"class_token": False, "global_pool": "map"} | kwargs)
        model.default_cfg = {}
        return model

    make.__name__, make.__module__ = TRUNK, "timm.models.vision_transformer"
    timm.models.register_model(make)


def randomise(module, torch):
    """Gives every parameter random values, norms and temperature too, of an order that keeps activations near 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in module.named_parameters():
            scale = 0.3 if p.ndim < 2 else 1.5 * p.shape[-1] ** -0.5
            one = p.ndim == 1 and name.endswith(("weight", "gamma"))
            p.copy_(torch.randn(p.shape, generator=generator) * scale + one)
        module.logit_scale.fill_(2.1)
    return module


def save(open_clip, torch, config, folder):
    """Writes ``folder`` with a random model of ``config``."""
    folder.mkdir()
    content = {"model_cfg": config, "preprocess_cfg": IMAGES}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    module = randomise(open_clip.create_model(f"local-dir:{folder}"), torch)
    arrays = {name: np.array(x.numpy(), order="C") for name, x in module.state_dict().items()}
    safetensors.numpy.save_file(arrays, folder / "open_clip_model.safetensors")
    return folder


def changed(config, **towers):
    """A copy with other fields: ``vision_cfg={"pool_type": "avg"}``."""
    out = copy.deepcopy(config)
    for key, value in towers.items():
        out[key] = {**out[key], **value} if isinstance(value, dict) and key in out else value
    return out


def alike(a, b):
    """Whether two models are equal but for the token that fills up, which they never see."""
    a, b = (models.replace_in_towers(m, pad_id=0) for m in (a, b))
    return a == b


def random_tensors(shapes, seed=0):
    """Arrays of these shapes by name."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape, scale=0.3).astype(np.float32) for name, shape in shapes.items()}
