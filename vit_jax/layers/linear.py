"""Linear maps: the product that everything uses, and the frozen specs that build layers from it.

The accumulation rule: operands in the compute type, sums in float32, one rounding at the end. Matrix units (TPU, GPU,
AMX on the CPU) want exactly this; a product whose result type is bfloat16 runs several times slower on the CPU, and so
does one that mixes float32 with bfloat16, which automatic differentiation of the rule would emit. Hence the VJP below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.types import Params

DType = Literal["float32", "bfloat16"]
Init = Callable[..., jax.Array]


def logical(init: Init, axes: tuple[str | None, ...]) -> Init:
    """``init`` that boxes its parameter with the names of its logical axes (``nn.with_logical_partitioning``)."""
    boxed: Any = nn.with_logical_partitioning(init, axes)  # Linen unboxes what ``self.param`` returns
    return boxed


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """``x @ kernel + bias``: operands in the type of ``x``, accumulated in float32, rounded once.

    Args:
      x: ``[..., in]``; its type is the compute type.
      kernel: ``[in, out]`` in the parameter type.
      bias: ``[out]`` in the parameter type, or None.

    Returns:
      ``[..., out]`` in the type of ``x``. Gradients of ``kernel`` and ``bias`` are float32 sums in the parameter type.
    """
    return _matmul_fwd(x, kernel, bias)[0]


def _matmul_fwd(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, Any]:
    low = kernel.astype(x.dtype)
    y = _dot(x, low, x.ndim - 1, 0)
    if bias is not None:
        y += jax.lax.broadcast_in_dim(bias.astype(jnp.float32), y.shape, (y.ndim - 1,))
    types = jnp.zeros((0,), kernel.dtype), None if bias is None else jnp.zeros((0,), bias.dtype)
    return y.astype(x.dtype), (x, low, *types)


def _matmul_bwd(saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, kernel, kernel_type, bias_type = saved
    g = g.astype(x.dtype)
    dx = _dot(g, kernel, g.ndim - 1, 1).astype(x.dtype)
    rows = tuple(range(g.ndim - 1))
    dbias = None if bias_type is None else jnp.sum(g, axis=rows, dtype=jnp.float32).astype(bias_type.dtype)
    return dx, _outer(x, g).astype(kernel_type.dtype), dbias


def _outer(x: jax.Array, g: jax.Array) -> jax.Array:
    """``x^T g`` over all leading axes, float32.

    Over one axis XLA:CPU folds the transposition into the product and leaves the bfloat16 path (4x slower); over two it
    copies ``x^T`` first. The barrier keeps a transposition of the result, as of tied weights, from being folded in
    either, which that path refuses to run.
    """
    if x.ndim == 2:
        x, g = x[None], g[None]
    rows = tuple(range(x.ndim - 1))
    dot = jax.lax.dot_general(x, g, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(dot)


def _dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=jnp.float32)


matmul.defvjp(_matmul_fwd, _matmul_bwd)


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

    def pair(self, hidden: int) -> tuple[LinearSpec, LinearSpec]:
        """Specs of the maps into and out of ``hidden`` units, whose order between the two is theirs to choose."""
        return self, self


class Linear(nn.Module):
    """``[..., in] -> [..., features]`` with parameters ``kernel [in, features]`` and ``bias [features]``.

    Attributes:
      features: size of the output.
      axes: logical axes of input and output.
      dtype: compute type; parameters are float32.
      use_bias: whether there is a bias.
      kernel_init: initialiser of the kernel.
      bias_init: initialiser of the bias.
    """

    features: int
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    dtype: DType = "float32"
    use_bias: bool = True
    kernel_init: Init = nn.initializers.xavier_uniform()
    bias_init: Init = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", logical(self.kernel_init, self.axes), shape)
        bias = None
        if self.use_bias:
            bias = self.param("bias", logical(self.bias_init, self.axes[1:]), shape[1:])
        return matmul(x.astype(self.dtype), kernel, bias)


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
