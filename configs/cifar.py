"""A small ViT on CIFAR-10 kept as files: a folder with one sub-folder a class, or tar shards.

vit_jax train --config cifar --config.data.path=folder:/data/cifar10/train --workdir runs/cifar
"""

from ml_collections import ConfigDict

from vit_jax.config import lookup

ARGS = ("",)


def get_config(arg: str = "") -> ConfigDict:
    """Takes no argument."""
    lookup({"": None}, arg, "argument of cifar.py")
    config = ConfigDict()
    config.model = dict(
        name="vit",
        patch=4,
        width=128,
        depth=4,
        heads=2,
        mlp_dim=256,
        pool="gap",
        positions="sincos2d",
        dtype="bfloat16",
    )
    config.data = dict(canvas=32, holdout=5000)
    config.augment = dict(size=32, train=("flip",), norm="inception")
    config.optim = dict(optimizer="adamw(b2=0.99)", lr=1e-3, weight_decay=0.05, warmup="5%", clip_norm=1.0)
    config.objective = dict(name="classify", label_smoothing=0.1)
    config.duration = "8 epochs"
    config.batch_size = 64
    config.eval_every = "2 epochs"
    config.checkpoint_every = "2 epochs"
    return config
