"""Weights of CLIP, SigLIP, CoCa and their kind on your own images and captions.

    vit_jax train --config finetune_clip --config.init=FILE --config.data.path=csv:/my/pairs.csv \
        --workdir runs/mine

``FILE`` is of open_clip, Hugging Face, a run or whatever ``vit_jax convert`` reads. What is ``init`` below is as the
weights have it: architecture, tokenizer and length of texts, size and normalisation of images, and the loss (softmax,
SigLIP's sigmoid, CoCa's with captions).

The rest suits some thousand to some ten thousand pairs. Learning rate, decay and 10 epochs are those with which FLYP
(Goyal et al. 2023, arXiv:2212.00638; its README) fine-tunes CLIP B/16 by the contrastive loss: 1e-5, 0.1, at 512 pairs
a step. open_clip's README fine-tunes CoCa with 1e-5 and 0.1 at 128, that of WiSE-FT (Wortsman et al. 2022) CLIP B/32
with 3e-5 at 512. Images are not flipped: captions tell left from right. Scale and bias of the logits move by no more
than about the learning rate a step, so no bounds are set.
"""

from ml_collections import ConfigDict

ARGS = ()
DECAY = ((r".*/(bias|scale\w*|cls)|logit_(scale|bias)", 0.0), (".*", 1.0))  # all but gains and biases, as in clip.py


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.model = dict(name="init", image_tower=dict(dtype="bfloat16"), text_tower=dict(dtype="bfloat16"))
    config.data = dict(canvas="init", frame="init", on_error="skip", text=dict(tokenizer="init", length="init"))
    config.augment = dict(
        size="init", crop="init", interpolation="init", norm="init", train=("inception_crop(scale=(0.9, 1.0))",)
    )
    config.optim = dict(
        optimizer="adamw(b2=0.98, eps=1e-6)", lr=1e-5, warmup="10%", weight_decay=0.1, decay_rules=DECAY, clip_norm=1.0
    )
    config.objective = "init"
    config.evaluators = ("retrieval",)
    config.best = "val/mean_r1"
    config.duration = "10 epochs"
    config.batch_size = 128
    return config
