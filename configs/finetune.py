"""Any model on your own images: a folder with one sub-folder a class, tar shards, Parquet or TFDS.

    vit_jax train --config finetune:vit_ti16 --config.data.path=folder:/my/images --workdir runs/mine
    vit_jax train --config finetune:vit_ti16 --config.data.path=folder:/my/images --workdir runs/mine2 \
        --config.init=runs/pretrained

``--config.init`` takes parameters, of another run or of weights in any format; without it training starts from scratch.
``finetune:init`` takes the model from them, too, the size of images and how pixels are prepared.
"""

from ml_collections import ConfigDict

ARGS = ("vit_ti16", "mixer_s16")


def get_config(arg: str = "vit_ti16") -> ConfigDict:
    """``arg``: a model of ``vit_jax models``, or "init" for that of the weights."""
    config = ConfigDict()
    config.model = dict(name=arg, dtype="bfloat16")
    config.data = dict(canvas=256)
    pixels = dict(size=224, crop=0.875, norm="inception")
    if arg == "init":
        config.data = dict(canvas="init", frame="init")
        pixels = dict.fromkeys(("size", "crop", "interpolation", "norm"), "init")
    config.augment = dict(train=("inception_crop(scale=(0.3, 1.0))", "flip"), **pixels)
    config.optim = dict(optimizer="adamw", lr=3e-4, weight_decay=0.05, warmup="5%", clip_norm=1.0)
    config.objective = dict(name="classify", label_smoothing=0.1)
    config.duration = "10 epochs"
    config.batch_size = 64
    return config
