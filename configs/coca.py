"""CoCa: contrast and captions in one pass (Yu et al. 2022, arXiv:2205.01917).

    vit_jax train --config coca:digits --workdir runs/coca
    vit_jax train --config coca:coca_vit_b32 --workdir runs/b32 --config.data.path='tar:/data/{000..999}.tar'

The recipe of clip.py with a decoder; the loss is that of the pairs plus twice that of the captions (equation 4).
"""

import pathlib
import runpy

from ml_collections import ConfigDict

ARGS = ("digits", "coca_vit_b32")
CLIP = runpy.run_path(str(pathlib.Path(__file__).with_name("clip.py")))["get_config"]


def get_config(arg: str = "digits") -> ConfigDict:
    """``arg``: "digits", or a CoCa of ``vit_jax models``."""
    config = CLIP(arg)
    config.objective = dict(name="coca")
    if arg == "digits":
        tower = dict(heads=4, mlp_dim=192, dtype="bfloat16")
        config.model.update(name="coca", decoder=dict(depth=2, split=False, **tower), queries=17, pool_heads=4)
        config.model.text_tower.update(pool="cls", depth=2)
        config.evaluators = (*config.evaluators, dict(name="caption", data="digits_pairs:phrasings"))
    else:
        config.model.decoder = dict(dtype="bfloat16")
        config.data.text.length = 76
    return config
