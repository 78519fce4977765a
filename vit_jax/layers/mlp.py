"""The two-layer perceptron and its activations."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import config, sharding
from vit_jax.checks import Checked, Size, shown
from vit_jax.kernels.monarch_mlp import monarch_mlp
from vit_jax.kernels.products import differentiable
from vit_jax.kernels.topk_mlp import topk_mlp
from vit_jax.layers.linear import Dense, DType, Linear, LinearSpec
from vit_jax.layers.linear.monarch import in_one, pair
from vit_jax.layers.stochastic import dropout
from vit_jax.types import UsageError

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": lambda x: x * jax.nn.sigmoid(x),
}
"""By name, on float32. ``gelu`` is exact (erf), ``gelu_tanh`` Flax's default, ``quick_gelu`` OpenAI CLIP's."""


def largest(x: jax.Array, count: int) -> jax.Array:
    """Which entries are among the ``count`` largest of their row: bool, exactly as many; of equal ones the first."""
    if count >= x.shape[-1]:
        return jnp.ones(x.shape, bool)
    # The last kept is the least, and of those equal to it the furthest: ``top_k`` takes equal ones from the first.
    # The barrier: XLA:CPU sorts all entries where it sees that only the last is read, which takes 8 times as long.
    best = jax.lax.optimization_barrier(jax.lax.top_k(jax.lax.stop_gradient(x), count))
    least, last = (v[..., -1:] for v in best)
    place = jax.lax.broadcasted_iota(last.dtype, x.shape, x.ndim - 1)
    return (x > least) | (x == least) & (place <= last)


@dataclasses.dataclass(frozen=True)
class TopK(Checked):
    """ReLU of which each token keeps its ``k`` largest units (Li et al. 2022, arXiv:2210.06313, section 4).

    Units beside the kept ones are 0 and have no gradient. Exactly k stay, of equal ones the first; where fewer are
    positive, fewer are not 0.

    Attributes:
      k: units kept; from the size of the hidden layer on, this is ReLU.
    """

    k: Size

    def __str__(self) -> str:
        return f"topk({self.k})"

    @classmethod
    def parse(cls, value: Any, path: str) -> TopK:
        """From ``"topk(128)"`` or ``{"name": "topk", "k": 128}``, for :func:`vit_jax.config.parse`."""
        if isinstance(value, cls):
            return value
        fields = config.spec_fields(value, TOPK, path) if isinstance(value, str) else {}
        fields = dict(value) if isinstance(value, Mapping) else fields
        if fields.pop("name", None) != "topk":
            names = {**ACTIVATIONS, "topk(128)": cls}
            raise UsageError(f"{path}={shown(value)} is not allowed{config.suggest(str(value), names)}")
        if set(fields) != {"k"}:
            raise UsageError(f"{path}={shown(value)} cannot be read; write topk(128), the units each token keeps.")
        return cls(config.parse(Size, fields["k"], f"{path}.k"))

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., F] -> [..., F]``."""
        x = jax.nn.relu(x)
        return x if self.k >= x.shape[-1] else jnp.where(largest(x, self.k), x, 0.0)

    def after(self, spec: LinearSpec) -> LinearSpec:
        """The spec of the map that takes what is left: a dense one may skip the rows of the others."""
        return _Kept(self.k) if spec == Dense() else spec


TOPK = {"topk": TopK}
Activation = Literal["gelu", "gelu_tanh", "relu", "quick_gelu", "silu"] | TopK
"""A name in :data:`ACTIVATIONS` or "topk(128)"."""


def _activate(activation: Any, x: jax.Array) -> jax.Array:
    if not isinstance(activation, TopK):
        activation = config.lookup(ACTIVATIONS, activation, "activation")
    return activation(x.astype(jnp.float32)).astype(x.dtype)


def _gradient(activation: Any, x: jax.Array, g: jax.Array) -> Any:
    x = jax.lax.optimization_barrier(x)  # else XLA keeps what the forward pass computed of x, in float32
    return jax.vjp(functools.partial(_activate, activation), x)[1](g)


@differentiable(_gradient, static=1)
def activate(activation: Activation, x: jax.Array) -> jax.Array:
    """``activation`` of ``x``, computed in float32, in the type of ``x``; the backward keeps only ``x``."""
    return _activate(activation, x)


class TopKLinear(Linear):
    """A ``Linear`` whose input has at most ``k`` units per token that are not 0: same parameters, same map.

    Attributes:
      k: most units per token that are not 0, the ``k`` of the :class:`TopK` before it.
    """

    k: int = 1

    def product(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        return topk_mlp(x, kernel, bias, k=self.k)


@dataclasses.dataclass(frozen=True)
class _Kept(Dense):
    """A dense map behind ``TopK(k)``: the MLP's own affair, not the user's."""

    k: int

    def __call__(self, features: int, **kwargs: Any) -> TopKLinear:
        return TopKLinear(features, k=self.k, **kwargs)


class MLP(nn.Module):
    """``mlp_in``, activation, dropout, ``mlp_out``: ``[..., D] -> [..., D]``.

    The collection "activity" gets ``active`` float32 ``[...]``: the share of hidden units that are not 0.

    Attributes:
      hidden: size of the hidden layer.
      linear: linear map (dense, or a structured one) of both products.
      activation: nonlinearity between the two products.
      dropout: dropout rate after the activation.
      dtype: compute type; parameters are float32.
    """

    hidden: int
    linear: LinearSpec = Dense()
    activation: Activation = "gelu"
    dropout: float = 0.0
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        kwargs: dict[str, Any] = {"dtype": self.dtype, "bias_init": nn.initializers.normal(1e-6)}
        first, second = pair(self.linear, self.hidden)
        if isinstance(self.activation, TopK):
            second = self.activation.after(second)
        into = first(self.hidden, name="mlp_in", axes=("embed", "mlp"), **kwargs)
        out = second(x.shape[-1], name="mlp_out", axes=("mlp", "embed"), **kwargs)
        asked = self.is_mutable_collection("activity") and not self.is_initializing()
        dropped = self.dropout and key is not None
        if in_one(into, out, x.shape[-1]) and not (asked or dropped or isinstance(self.activation, TopK)):
            factors = into.factors(x.shape[-1]), out.factors(self.hidden)
            activation = config.lookup(ACTIVATIONS, self.activation, "activation")
            return monarch_mlp(x.astype(self.dtype), *factors, activation)
        h = into(x)
        h = activate(self.activation, sharding.constrain(h, "batch", *[None] * (h.ndim - 2), "mlp"))
        if asked:
            self.sow("activity", "active", jnp.mean(h != 0, axis=-1, dtype=jnp.float32))
        return out(dropout(h, self.dropout, key))
