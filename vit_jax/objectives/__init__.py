"""Objectives: what is minimised. They alone know the keys of a batch and the outputs of a model."""

from vit_jax.objectives.base import Apply as Apply
from vit_jax.objectives.base import Metrics as Metrics
from vit_jax.objectives.base import Objective as Objective
from vit_jax.objectives.base import PerExample as PerExample
from vit_jax.objectives.base import split as split
from vit_jax.objectives.classify import Classify as Classify
from vit_jax.objectives.coca import CoCa as CoCa
from vit_jax.objectives.contrast import Contrast as Contrast
from vit_jax.objectives.distill import Distill as Distill
from vit_jax.objectives.distill import Teacher as Teacher
from vit_jax.objectives.drawn import DRAWN as DRAWN
from vit_jax.objectives.drawn import Annealed as Annealed
from vit_jax.objectives.drawn import Drawn as Drawn
from vit_jax.objectives.hierarchical import Hierarchical as Hierarchical
from vit_jax.objectives.pairs import Pairs as Pairs
from vit_jax.objectives.reconstruct import Reconstruct as Reconstruct
from vit_jax.objectives.upsample import Upsample as Upsample

OBJECTIVES = {**DRAWN, "drawn": Drawn, "annealed": Annealed, "reconstruct": Reconstruct, "upsample": Upsample}
