"""CLOOB: Hopfield retrieval from the batch, and InfoLOOB instead of InfoNCE (Fürst et al. 2022, arXiv:2110.11316).

    vit_jax train --config cloob:digits --workdir runs/cloob
    vit_jax train --config cloob:clip_vit_b32 --workdir runs/b32 \
        --config.data.path='tar:/data/{000..999}.tar'

The recipe of clip.py but for the loss and the learning rate of ``digits``. The inverse temperature is 30 and, as in the
authors' code, not trained.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

ARGS = ("digits", "clip_vit_b32")
CLIP = runpy.run_path(str(pathlib.Path(__file__).with_name("clip.py")))["get_config"]


def get_config(arg: str = "digits") -> ConfigDict:
    """``arg``: "digits", or an image-text model of ``vit_jax models``."""
    config = CLIP(arg)
    config.objective = dict(name="contrast", loss="cloob(beta=8.0)")
    config.model.temperature = 30.0
    config.optim.update(bounds=(), freeze=("logit_scale",))
    if arg == "digits":
        config.optim.lr = 1e-3
    return config
