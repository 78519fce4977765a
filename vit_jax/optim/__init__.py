"""Optimization: an :class:`OptimConfig` becomes one optax transformation and its learning-rate schedule."""

from vit_jax.optim.build import OptimConfig, build, trainable
from vit_jax.optim.optimizers import OPTIMIZERS
from vit_jax.optim.sam import SAM, GradFn
from vit_jax.optim.schedules import SCHEDULES

__all__ = ["OPTIMIZERS", "SAM", "SCHEDULES", "GradFn", "OptimConfig", "build", "trainable"]
