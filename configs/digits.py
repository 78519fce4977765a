"""A small ViT on scikit-learn's bundled handwritten digits: 1,437 scans to train on, 360 held out.

vit_jax train --config digits --workdir runs/digits
vit_jax train --config digits:sam --workdir runs/digits_sam
vit_jax train --config digits:flexi --workdir runs/digits_flexi
"""

from ml_collections import ConfigDict

from vit_jax.config import lookup

ARGS = ("", "sam", "flexi")


def get_config(arg: str = "") -> ConfigDict:
    """``arg``: "" for AdamW, "sam" for sharpness-aware minimisation, "flexi" for patches of several sizes."""
    config = ConfigDict()
    config.model = dict(name="vit", patch=4, width=96, depth=4, heads=4, mlp_dim=192, pool="gap", positions="sincos2d")
    config.data = dict(path="digits", canvas=8)
    affine = "affine(rotate=15, translate=0.12, scale=(0.85, 1.15), shear=0.15)"
    config.augment = dict(size=8, train=(affine,), norm="inception")
    config.optim = dict(optimizer="adamw(b2=0.95)", lr=1e-3, warmup="3%", weight_decay=0.05, clip_norm=1.0)
    config.objective = dict(name="classify", label_smoothing=0.1)
    config.duration = "80 epochs"
    config.batch_size = 32
    config.ema = 0.998
    config.eval_every = "10 epochs"
    config.checkpoint_every = "10 epochs"
    config.optim.sam = lookup({"": None, "sam": "sam(rho=0.05)", "flexi": None}, arg, "argument of digits.py")
    if arg == "flexi":
        config.model.patches = (4, 2, 8)
        config.objective = dict(name="drawn", objective=config.objective)
        config.evaluators = ("classify", "forms")
    return config
