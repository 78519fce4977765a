"""Evaluators: what the loop runs on held-out data between training steps, selected by name."""

from vit_jax.evals.activity import Activity as Activity
from vit_jax.evals.base import EvalContext as EvalContext
from vit_jax.evals.base import Evaluator as Evaluator
from vit_jax.evals.base import Report as Report
from vit_jax.evals.base import combine as combine
from vit_jax.evals.caption import Caption as Caption
from vit_jax.evals.classify import Classify as Classify
from vit_jax.evals.forms import OF_ONE, Forms
from vit_jax.evals.probes import KNN as KNN
from vit_jax.evals.probes import LinearProbe as LinearProbe
from vit_jax.evals.retrieval import Retrieval as Retrieval
from vit_jax.evals.speed import Speed as Speed
from vit_jax.evals.upsample import Upsample as Upsample
from vit_jax.evals.zero_shot import ZeroShot as ZeroShot

EVALUATORS = {**OF_ONE, "forms": Forms, "upsample": Upsample}
