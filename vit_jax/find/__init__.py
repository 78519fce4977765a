"""Finders: a learning rate by a range test, and the batch that a device holds; both on a run's own step."""

from vit_jax.find.batch_size import BatchSearch as BatchSearch
from vit_jax.find.batch_size import find_batch as find_batch
from vit_jax.find.learning_rate import RateSweep as RateSweep
from vit_jax.find.learning_rate import find_lr as find_lr
