"""SigLIP: every pair of the batch is a question of its own, no softmax (Zhai et al. 2023, arXiv:2303.15343).

    vit_jax train --config siglip:digits --workdir runs/siglip
    vit_jax train --config siglip:siglip_vit_b16 --workdir runs/b16 \
        --config.data.path='tar:/data/{000..999}.tar' --config.data.text.tokenizer=sentencepiece:/data/c4_en.model

The recipe of clip.py but for the loss, the initial temperature and bias, the learning rates of ``digits`` and, of the
large models, b2 (section 4.7).
The bias wants to be near -ln(B - 1) at batch B: -10 belongs to 22,000, -5.5 to 256.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

ARGS = ("digits", "siglip_vit_b16")
CLIP = runpy.run_path(str(pathlib.Path(__file__).with_name("clip.py")))["get_config"]


def get_config(arg: str = "digits") -> ConfigDict:
    """``arg``: "digits", or an image-text model of ``vit_jax models``."""
    config = CLIP(arg)
    config.objective = dict(name="contrast", loss="sigmoid")
    config.optim.bounds = ()
    if arg == "digits":
        config.model.update(temperature=10.0, bias=-5.5)
        fast = (("logit_scale", 10.0), ("logit_bias", 10.0))  # few steps: they have far to go
        config.optim.update(lr=1e-3, lr_mult=fast)
    else:
        config.data.text = dict(tokenizer="clip", length=64)
        config.augment.norm = "inception"
        config.optim.update(optimizer="adamw(b2=0.95)", lr=1e-3, weight_decay=1e-4)
    return config
