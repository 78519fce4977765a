"""Linear maps: layers around the product that everything uses, and the frozen specs that build them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.kernels.products import matmul as matmul
from vit_jax.types import Params

DType = Literal["float32", "bfloat16"]
Init = Callable[..., jax.Array]


def logical(init: Init, axes: tuple[str | None, ...]) -> Init:
    """``init`` that boxes its parameter with the names of its logical axes (``nn.with_logical_partitioning``)."""
    boxed: Any = nn.with_logical_partitioning(init, axes)  # Linen unboxes what ``self.param`` returns
    return boxed


@runtime_checkable
class LinearSpec(Protocol):
    """A frozen value that builds linear layers: ``[..., in] -> [..., features]``, ``in`` known at the first call.

    The parameters of the layer depend on the spec alone, never on the kernel backend that runs it.
    """

    def __call__(
        self,
        features: int,
        *,
        name: str,
        axes: tuple[str | None, str | None] = ("embed", "mlp"),
        dtype: DType = "float32",
        use_bias: bool = True,
        kernel_init: Init = ...,
        bias_init: Init = ...,
    ) -> nn.Module:
        """A Linen module named ``name``; ``axes`` are the logical axes of the map's input and output."""

    def to_dense(self, params: Params) -> tuple[jax.Array, jax.Array | None]:
        """The layer's parameters -> ``(kernel [in, out], bias [out] or None)`` of the equal dense map."""

    def from_dense(self, kernel: jax.Array, bias: jax.Array | None) -> Params:
        """The layer's parameters that equal, or best approximate, a dense map."""


class LinearLayer(nn.Module):
    """``[..., in] -> [..., features]``: what all linear layers share.

    Attributes:
      features: size of the output.
      axes: logical axes of input and output, for sharding.
      dtype: compute type; parameters are float32.
      use_bias: whether a bias is added.
      kernel_init: initialiser of the dense kernel ``[in, features]`` that the map stands for.
      bias_init: initialiser of the bias.
    """

    features: int
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    dtype: DType = "float32"
    use_bias: bool = True
    kernel_init: Init = nn.initializers.xavier_uniform()
    bias_init: Init = nn.initializers.zeros

    def make_bias(self) -> jax.Array | None:
        """The parameter ``bias [features]``, or None without ``use_bias``."""
        if not self.use_bias:
            return None
        return self.param("bias", logical(self.bias_init, self.axes[1:]), (self.features,))


class Linear(LinearLayer):
    """``[..., in] -> [..., features]`` with parameters ``kernel [in, features]`` and ``bias [features]``."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", logical(self.kernel_init, self.axes), (x.shape[-1], self.features))
        return self.product(x.astype(self.dtype), kernel, self.make_bias())

    def product(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        """``x @ kernel + bias``, for layers that know a shorter way to it."""
        return matmul(x, kernel, bias)


@dataclasses.dataclass(frozen=True)
class Dense(LinearSpec):
    """The ordinary dense map."""

    def __call__(self, features: int, **kwargs: Any) -> Linear:
        return Linear(features, **kwargs)

    def to_dense(self, params: Params) -> tuple[jax.Array, jax.Array | None]:
        return params["kernel"], params.get("bias")

    def from_dense(self, kernel: jax.Array, bias: jax.Array | None) -> Params:
        return {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}


def xavier_uniform_parts(parts: int) -> Init:
    """Xavier-uniform for ``parts`` maps fused along the output, each as if initialised alone."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        limit = (6 / (shape[0] + shape[1] // parts)) ** 0.5
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init
