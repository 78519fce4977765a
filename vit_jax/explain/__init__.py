"""What a model looks at."""

from vit_jax.explain.attention import attention_maps, by_block, draw, heatmap, rollout

__all__ = ["attention_maps", "by_block", "draw", "heatmap", "rollout"]
