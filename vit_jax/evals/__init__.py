"""Evaluators: what the loop runs on held-out data between training steps, selected by name."""

from vit_jax.evals.base import Evaluator as Evaluator
from vit_jax.evals.base import Report as Report
from vit_jax.evals.classify import Classify

EVALUATORS = {"classify": Classify}
