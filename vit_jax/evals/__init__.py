"""Evaluators: what the loop runs on held-out data between training steps, selected by name."""

from vit_jax.evals.activity import Activity
from vit_jax.evals.base import EvalContext as EvalContext
from vit_jax.evals.base import Evaluator as Evaluator
from vit_jax.evals.base import Report as Report
from vit_jax.evals.base import combine as combine
from vit_jax.evals.caption import Caption
from vit_jax.evals.classify import Classify
from vit_jax.evals.probes import KNN, LinearProbe
from vit_jax.evals.retrieval import Retrieval
from vit_jax.evals.speed import Speed
from vit_jax.evals.zero_shot import ZeroShot

EVALUATORS = {
    "classify": Classify,
    "retrieval": Retrieval,
    "caption": Caption,
    "zero_shot": ZeroShot,
    "linear_probe": LinearProbe,
    "knn": KNN,
    "activity": Activity,
    "speed": Speed,
}
