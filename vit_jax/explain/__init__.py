"""What a model looks at."""

from vit_jax.explain.attention import attention_maps, rollout
from vit_jax.explain.base import by_block, heatmap

__all__ = ["attention_maps", "by_block", "heatmap", "rollout"]
