"""Losses: pure functions of arrays that return one value per example; no reduction, no model, no mesh."""

from vit_jax.losses.blockwise import Chunked as Chunked
from vit_jax.losses.blockwise import Ring as Ring
from vit_jax.losses.caption import caption_cross_entropy as caption_cross_entropy
from vit_jax.losses.classification import CROSS_ENTROPIES as CROSS_ENTROPIES
from vit_jax.losses.classification import PROBABILITIES as PROBABILITIES
from vit_jax.losses.classification import sigmoid_cross_entropy as sigmoid_cross_entropy
from vit_jax.losses.classification import smooth_targets as smooth_targets
from vit_jax.losses.classification import softmax_cross_entropy as softmax_cross_entropy
from vit_jax.losses.contrastive import CONTRASTIVE as CONTRASTIVE
from vit_jax.losses.contrastive import FORMS as FORMS
from vit_jax.losses.contrastive import Cloob as Cloob
from vit_jax.losses.contrastive import ContrastiveLoss as ContrastiveLoss
from vit_jax.losses.contrastive import Sigmoid as Sigmoid
from vit_jax.losses.contrastive import Softmax as Softmax
from vit_jax.losses.contrastive import top1 as top1
from vit_jax.losses.distill import affinity_distillation as affinity_distillation
from vit_jax.losses.distill import cosine_distillation as cosine_distillation
from vit_jax.losses.distill import l2_distillation as l2_distillation
from vit_jax.losses.distill import logit_distillation as logit_distillation
from vit_jax.losses.pairs import Dense as Dense
from vit_jax.losses.pairs import PairwiseBackend as PairwiseBackend
