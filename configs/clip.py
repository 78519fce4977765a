"""CLIP: two towers, softmax over all pairs of the batch (Radford et al. 2021, arXiv:2103.00020).

    vit_jax train --config clip:digits --workdir runs/clip
    vit_jax train --config clip:clip_vit_b32 --workdir runs/b32 --config.data.path='tar:/data/{000..999}.tar'

``digits`` needs no data: pairs of handwritten digits in colours with captions that say where which one is, held out by
composition, wording and scan. Its tokenizer, nearly a token a word, is what ``vit_jax data tokenizer digits_pairs FILE
--vocab_size 340`` writes. The others are the published recipe (section 2.5, appendix F) for 32,768 pairs a step;
``--config.accumulate`` computes the same step in parts where they do not fit.
"""

import pathlib

from ml_collections import ConfigDict

ARGS = ("digits", "clip_vit_b32")
CLAMP = (("logit_scale", 0.0, 4.6052),)  # an inverse temperature between 1 and 100
DECAY = ((r".*/(bias|scale\w*|cls)|logit_(scale|bias)", 0.0), (".*", 1.0))  # all but gains and biases: embeddings too
TOKENIZER = f"json:{pathlib.Path(__file__).resolve().with_name('digits_pairs.json')}"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def get_config(arg: str = "digits") -> ConfigDict:
    """``arg``: "digits", or an image-text model of ``vit_jax models``."""
    return digits() if arg == "digits" else real(arg)


def digits() -> ConfigDict:
    config = ConfigDict()
    tower = dict(width=96, heads=4, mlp_dim=192, dtype="bfloat16")
    image = dict(name="vit", patch=4, depth=4, pool="gap", positions="sincos2d", **tower)
    config.model = dict(name="two_tower", image_tower=image, text_tower=dict(depth=3, **tower), embed_dim=64)
    config.data = dict(path="digits_pairs", canvas=16, text=dict(tokenizer=TOKENIZER, length=16))
    affine = "affine(rotate=15, translate=0.06, scale=(0.85, 1.15), shear=0.15)"
    config.augment = dict(size=16, train=(affine,), norm="inception")
    config.optim = dict(optimizer="adamw(b2=0.98)", lr=2e-3, warmup="5%", weight_decay=0.05, bounds=CLAMP)
    config.objective = dict(name="contrast")
    zero_shot = dict(name="zero_shot", data="digits", templates="digits", classes=WORDS)
    config.evaluators = ("retrieval", zero_shot)
    config.best = "val/mean_r1"
    config.duration = "12 epochs"
    config.batch_size = 256
    config.ema = 0.998
    config.eval_every = "25%"
    config.checkpoint_every = "25%"
    return config


def real(model: str) -> ConfigDict:
    config = ConfigDict()
    config.model = dict(name=model, image_tower=dict(dtype="bfloat16"), text_tower=dict(dtype="bfloat16"))
    config.data = dict(canvas=256, on_error="skip", text=dict(tokenizer="clip", length=77))
    config.augment = dict(size=224, train=("inception_crop(scale=(0.9, 1.0))",), interpolation="bicubic", norm="clip")
    config.optim = dict(
        optimizer="adamw(b2=0.98, eps=1e-6)", lr=5e-4, warmup="2000 steps", weight_decay=0.2, decay_rules=DECAY,
        bounds=CLAMP,
    )  # fmt: skip
    config.objective = dict(name="contrast")
    config.evaluators = ("retrieval",)
    config.best = "val/mean_r1"
    config.duration = "32 epochs"
    config.batch_size = 32768
    config.checkpoint_every = "1000 steps"
    return config
