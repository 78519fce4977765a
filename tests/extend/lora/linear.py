"""Low-rank adaptation of any linear map (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.layers.linear import Dense, LinearSpec, Spec, matmul
from vit_jax.layers.linear.base import LinearLayer, logical

FROZEN = r"(?!.*(lora_[ab]|head/\w+)$).*"
"""Pattern for ``optim.freeze``: everything but the adapters and the head."""


class LoRALinear(LinearLayer):
    """``base(x) + scale * dropout(x) @ lora_a @ lora_b``.

    Attributes:
      base: the map that is adapted.
      rank: columns of ``lora_a [in, rank]`` and rows of ``lora_b [rank, features]``, which starts as zeros.
      scale: of the adapter's output.
      dropout: rate on the adapter's input in training.
    """

    base: LinearSpec = Dense()
    rank: int = 4
    scale: float = 1.0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options: dict[str, Any] = {"axes": self.axes, "dtype": self.dtype, "use_bias": self.use_bias}
        y = self.base(self.features, name="base", **options, kernel_init=self.kernel_init, bias_init=self.bias_init)(x)
        normal = nn.initializers.normal(x.shape[-1] ** -0.5)
        a = self.param("lora_a", logical(normal, (self.axes[0], None)), (x.shape[-1], self.rank))
        b = self.param("lora_b", logical(nn.initializers.zeros, (None, self.axes[1])), (self.rank, self.features))
        x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x.astype(self.dtype))
        return y + self.scale * matmul(matmul(x, a), b)


@dataclasses.dataclass(frozen=True)
class LoRA(LinearSpec):
    """Any linear map with an adapter of rank ``rank``.

    Attributes:
      base: the map that is adapted and stays as it is.
      rank: of the adapter.
      scale: of the adapter's output.
      dropout: rate on the adapter's input in training.
    """

    base: Spec = Dense()
    rank: int = 4
    scale: float = 1.0
    dropout: float = 0.0

    def __call__(self, features: int, **options: Any) -> LoRALinear:
        return LoRALinear(features, base=self.base, rank=self.rank, scale=self.scale, dropout=self.dropout, **options)

    def to_dense(self, params):
        kernel, bias = self.base.to_dense(params["base"])
        return kernel + self.scale * params["lora_a"] @ params["lora_b"], bias

    def from_dense(self, kernel, bias):
        inputs, outputs = kernel.shape
        a = jax.random.normal(jax.random.key(inputs * outputs), (inputs, self.rank)) * inputs**-0.5
        return {"base": self.base.from_dense(kernel, bias), "lora_a": a, "lora_b": jnp.zeros((self.rank, outputs))}
