"""Random image operations on the device: pure functions of (key, image), jitted and sharded with the batch."""

from vit_jax.augment.policy import NORMS, OPS, Augment, Norm

__all__ = ["NORMS", "OPS", "Augment", "Norm"]
