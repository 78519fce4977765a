"""ViT on ImageNet-1k from scratch, the plain recipe of arXiv:2106.01548.

vit_jax train --config configs/vit.py:s16 --workdir runs/s16 --config.data.path=tfds:imagenet2012 --config.mesh.fsdp=8
vit_jax train --config configs/vit.py:b16,sam --workdir runs/b16 --config.data.path='tar:/data/train-{0000..1023}.tar'

Published top-1, 300 epochs, AdamW -> SAM: S/32 68.4 -> 70.5, S/16 74.4 -> 78.1, B/32 71.4 -> 73.6, B/16 74.6 -> 79.9.
Not trained by us. The paper's batch lay on 64 chips, so with SAM groups of 64 examples (m) are perturbed together.
"""

from ml_collections import ConfigDict

from vit_jax.config import lookup

ARGS = ("s16", "b16,sam")
RHO = {"s32": 0.05, "s16": 0.1, "b32": 0.15, "b16": 0.2}


def get_config(arg: str = "s16") -> ConfigDict:
    """``arg``: a variant of ``vit_jax models`` without "vit_", and ",sam" for sharpness-aware minimisation."""
    variant, _, extra = arg.partition(",")
    config = ConfigDict()
    config.model = dict(name=f"vit_{variant}", dtype="bfloat16")
    config.data = dict(canvas=256, on_error="skip")
    config.augment = dict(size=224, train=("inception_crop", "flip"), crop=0.875, norm="inception")
    config.optim = dict(
        optimizer="adamw", lr=3e-3, weight_decay=0.3, warmup="10000 steps", schedule="linear(end=0.01)", clip_norm=1.0
    )
    sam = f"sam(rho={RHO.get(variant, 0.1)}, m=64)"
    config.optim.sam = lookup({"": None, "sam": sam}, extra, "option of vit.py")
    config.duration = "300 epochs"
    config.batch_size = 4096
    config.log_every = "50 steps"
    config.eval_every = "5 epochs"
    config.checkpoint_every = "1000 steps"
    return config
