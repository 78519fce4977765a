"""Tiny runs of every kind of training, in float32: what several hosts are compared with one on.

vit_jax train --config experiments/hosts/cases.py:clip_ring --workdir runs/clip_ring
"""

from __future__ import annotations

import pathlib
import runpy

from ml_collections import ConfigDict

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
ARGS = (
    "classify", "sam", "accumulate", "distill", "clip_dense", "clip_ring", "clip_accumulate", "siglip_chunked", "cloob",
    "coca",
)  # fmt: skip
WIDE = ("wide_classify", "wide_init", "wide_distill", "wide_clip_ring", "wide_coca")
"""As those, with arrays large enough for ``fsdp`` to split; ``wide_init`` starts from weights of ``wide_classify``."""
STEPS = 12


def get_config(arg: str = "classify") -> ConfigDict:
    """``arg``: one of :data:`ARGS` or :data:`WIDE`."""
    kind, width = arg.removeprefix("wide_"), 256 if arg in WIDE else 32
    config = images(kind, width) if kind in (*ARGS[:4], "init") else pairs(kind, width)
    config.duration, config.eval_every, config.checkpoint_every = (
        f"{n} steps" for n in (STEPS, STEPS // 2, STEPS // 2)
    )
    config.log_every, config.keep, config.plots = 1, 3, False
    return config


def images(arg: str, width: int) -> ConfigDict:
    config = recipe("digits.py")
    config.model.update(width=width, depth=2, heads=2, mlp_dim=2 * width, dropout=0.1)
    config.augment.train = (*config.augment.train, "mixup(alpha=0.2)", "cutmix")
    config.evaluators = ("classify", "linear_probe", "knn", "activity")
    config.optim.sam = "sam(rho=0.05, m=8)" if arg == "sam" else None
    config.accumulate = 2 if arg == "accumulate" else 1
    if arg == "distill":
        config.objective = dict(name="distill", teacher="runs/hosts/classify/one", blocks=2)
    return config


def pairs(arg: str, width: int) -> ConfigDict:
    name, _, form = arg.partition("_")
    config = recipe(f"{name}.py", "digits")
    towers = {key: value for key, value in config.model.items() if key.endswith("tower") or key == "decoder"}
    for tower in towers.values():
        tower.update(heads=2, mlp_dim=2 * width, depth=1, dtype="float32")
    config.model.image_tower.width = config.model.text_tower.width = width
    config.batch_size = 32
    config.accumulate = 2 if form == "accumulate" else 1
    if form in ("dense", "ring", "chunked"):
        config.objective.form = form
    return config


def recipe(name: str, arg: str = "") -> ConfigDict:
    return runpy.run_path(str(CONFIGS / name))["get_config"](arg)
