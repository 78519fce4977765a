"""MLP-Mixer on ImageNet-1k from scratch, the plain recipe of arXiv:2106.01548.

vit_jax train --config configs/mixer.py:b16,sam --workdir runs/mixer --config.data.path=tfds:imagenet2012

Published top-1, 300 epochs, AdamW -> SAM: S/32 63.9 -> 66.7, S/16 68.8 -> 72.9, B/32 62.5 -> 72.4, B/16 66.4 -> 77.4.
Not trained by us.
"""

from ml_collections import ConfigDict

from vit_jax.config import lookup

ARGS = ("s16", "b16,sam")
RHO = {"s32": 0.1, "s16": 0.15, "b32": 0.35, "b16": 0.6}


def get_config(arg: str = "s16") -> ConfigDict:
    """``arg``: "s32", "s16", "b32", "b16" or "l16", and ",sam" for sharpness-aware minimisation."""
    variant, _, extra = arg.partition(",")
    config = ConfigDict()
    config.model = dict(name=f"mixer_{variant}", dtype="bfloat16")
    config.data = dict(canvas=256, on_error="skip")
    config.augment = dict(size=224, train=("inception_crop", "flip"), crop=0.875, norm="inception")
    config.optim = dict(
        optimizer="adamw", lr=3e-3, weight_decay=0.3, warmup="10000 steps", schedule="linear(end=0.01)", clip_norm=1.0
    )
    sam = f"sam(rho={RHO.get(variant, 0.1)}, m=64)"
    config.optim.sam = lookup({"": None, "sam": sam}, extra, "option of mixer.py")
    config.duration = "300 epochs"
    config.batch_size = 4096
    config.log_every = "50 steps"
    config.eval_every = "5 epochs"
    config.checkpoint_every = "1000 steps"
    return config
