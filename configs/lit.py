"""LiT: a text tower learns the space of a pretrained image tower, which stays as it is (Zhai et al. 2022, 2111.07991).

    vit_jax train --config digits --workdir runs/digits
    vit_jax train --config lit:digits --workdir runs/lit --config.init=runs/digits
    vit_jax train --config lit:lit_vit_b16 --workdir runs/b16 --config.data.path='tar:/data/{000..999}.tar' \
        --config.init=hf://timm/vit_base_patch16_224.augreg_in21k

``--config.init`` takes the image tower from a run or from weights of any format.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

ARGS = ("digits", "lit_vit_b16")
CLIP = runpy.run_path(str(pathlib.Path(__file__).with_name("clip.py")))["get_config"]


def get_config(arg: str = "digits") -> ConfigDict:
    """``arg``: "digits", or an image-text model of ``vit_jax models``."""
    config = CLIP(arg)
    if arg == "digits":  # what digits.py trains: one scan fills the image, so captions name one digit
        config.model.update(lock="image", image_head="none", text_head="biased", embed_dim=96)
        config.data = dict(path="digits", canvas=8, text=dict(tokenizer="bytes", length=20, templates="digits"))
        config.augment.size = 8
        config.evaluators = (dict(name="zero_shot", data="digits", templates="digits"),)
        config.best = "val/zero_shot/accuracy"
        config.duration = "20 epochs"
    else:
        config.augment.norm = "inception"
    config.optim.update(freeze=("image_tower/.*",), weight_decay=1e-4)
    return config
