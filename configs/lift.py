"""LiFT: features of a frozen ViT on a grid of twice the side, without labels (Suri et al. 2024, arXiv:2403.14625).

    vit_jax train --config digits --workdir runs/digits
    vit_jax train --config lift:digits --workdir runs/lift --config.init=runs/digits
    vit_jax train --config lift:vit_b16 --workdir runs/b16 --config.data.path='folder:/my/images' \
        --config.init=hf://timm/vit_base_patch16_224.augreg_in21k

``--config.init`` takes the tower from a run or from weights of any format; ``model.side`` is the side of the images
that it knows, and ``augment.size`` that of the largest of three, each half of the one before it.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

ARGS = ("digits", "vit_b16")
DIGITS = runpy.run_path(str(pathlib.Path(__file__).with_name("digits.py")))["get_config"]


def get_config(arg: str = "digits") -> ConfigDict:
    """``arg``: "digits", or a ViT of ``vit_jax models``."""
    config = ConfigDict()
    if arg == "digits":  # what digits.py trains
        tower = DIGITS().model.to_dict()
        config.model = dict(name="lift", image_tower=tower, side=8)
        config.data = dict(path="digits", canvas=32)
        config.augment = dict(size=32, norm="inception")
        config.duration = "20 epochs"
        config.batch_size = 32
    else:
        config.model = dict(name="lift", image_tower=dict(name=arg, dtype="bfloat16"), side=224)
        config.data = dict(canvas=512, on_error="skip")
        config.augment = dict(size=448, train=("inception_crop(scale=(0.5, 1.0))", "flip"), norm="inception")
        config.duration = "5 epochs"
        config.batch_size = 256
    config.optim = dict(optimizer="adamw", lr=1e-3, weight_decay=0.0, warmup="2%", freeze=("image_tower/.*",))
    config.objective = dict(name="upsample")
    config.evaluators = ("upsample",)
    config.best = "val/cosine"
    return config
