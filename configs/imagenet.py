"""ViT and MLP-Mixer on ImageNet-1k from scratch, the plain recipe of arXiv:2106.01548.

vit_jax train --config imagenet:vit_s16 --workdir runs/s16 --config.data.path=tfds:imagenet2012
vit_jax train --config imagenet:mixer_b16,sam --workdir runs/mixer \
    --config.data.path='tar:/data/train-{0000..1023}.tar'

Published top-1 after 300 epochs, AdamW -> SAM:
ViT S/32 68.4 -> 70.5, S/16 74.4 -> 78.1, B/32 71.4 -> 73.6, B/16 74.6 -> 79.9;
Mixer S/32 63.9 -> 66.7, S/16 68.8 -> 72.9, B/32 62.5 -> 72.4, B/16 66.4 -> 77.4.
Not trained by us. The paper's batch lay on 64 chips, so with SAM groups of 64 examples (m) are perturbed together.
"""

from ml_collections import ConfigDict

from vit_jax.config import lookup

ARGS = ("vit_s16", "vit_b16,sam", "mixer_b16,sam")
RHO = {
    "vit_s32": 0.05,
    "vit_s16": 0.1,
    "vit_b32": 0.15,
    "vit_b16": 0.2,
    "mixer_s32": 0.1,
    "mixer_s16": 0.15,
    "mixer_b32": 0.35,
    "mixer_b16": 0.6,
}


def get_config(arg: str = "vit_s16") -> ConfigDict:
    """``arg``: a model of ``vit_jax models``, and ",sam" for sharpness-aware minimisation."""
    model, _, option = arg.partition(",")
    sam = f"sam(rho={RHO.get(model, 0.1)}, m=64)"
    config = ConfigDict()
    config.model = dict(name=model, dtype="bfloat16")
    config.data = dict(canvas=256, on_error="skip")
    config.augment = dict(size=224, train=("inception_crop", "flip"), crop=0.875, norm="inception")
    config.optim = dict(
        optimizer="adamw", lr=3e-3, weight_decay=0.3, warmup="10000 steps", schedule="linear(end=0.01)", clip_norm=1.0
    )
    config.optim.sam = lookup({"": None, "sam": sam}, option, "option of imagenet.py")
    config.duration = "300 epochs"
    config.batch_size = 4096
    config.eval_every = "5 epochs"
    config.checkpoint_every = "1000 steps"
    return config
