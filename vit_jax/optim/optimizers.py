"""Optimizers: frozen dataclasses that say how a gradient becomes a step direction; the rest is :mod:`.build`'s."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from vit_jax.checks import Checked, Decay, Positive, Range, Size
from vit_jax.types import UserError

Precision = Literal["float32", "bfloat16"]


@runtime_checkable
class Optimizer(Protocol):
    """What a row of :data:`OPTIMIZERS` builds."""

    def scale(self) -> optax.GradientTransformation:
        """Gradient -> step direction, without sign, learning rate or decay."""


@dataclasses.dataclass(frozen=True)
class AdamW(Checked):
    """Adam (arXiv:1412.6980, algorithm 1) with decoupled weight decay (arXiv:1711.05101, algorithm 2).

    Attributes:
      b1: decay of the first moment.
      b2: decay of the second moment; 0.95 is common for large batches and masked autoencoders.
      eps: constant added to the root of the second moment.
      mu_dtype: type in which the first moment is *stored*; arithmetic is in float32.
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: Positive = 1e-8
    mu_dtype: Precision = "float32"

    def scale(self) -> optax.GradientTransformation:
        return _store(optax.scale_by_adam(self.b1, self.b2, self.eps), "mu", self.mu_dtype)


@dataclasses.dataclass(frozen=True)
class Sgd(Checked):
    """Gradient descent with heavy-ball or Nesterov momentum ``u = g + momentum * u`` (Sutskever et al., ICML 2013).

    Attributes:
      momentum: decay of the sum of past gradients; 0 keeps no state.
      nesterov: step along ``g + momentum * u`` instead of ``u``.
      mu_dtype: type in which the momentum is *stored*; arithmetic is in float32.
    """

    momentum: Decay = 0.9
    nesterov: bool = False
    mu_dtype: Precision = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise UserError("sgd nesterov=True is not allowed with momentum=0; set one of them.")

    def scale(self) -> optax.GradientTransformation:
        if not self.momentum:
            return optax.identity()
        return _store(optax.trace(self.momentum, self.nesterov), "trace", self.mu_dtype)


@dataclasses.dataclass(frozen=True)
class Adafactor(Checked):
    """Adafactor (arXiv:1804.04235) as used for large ViTs (arXiv:2106.04560, section 3.4): with momentum and a cap on
    b2, without parameter scaling and relative steps, so that learning rates of Adam carry over.

    Defaults are those of ``scale_by_adafactor`` in google-research/big_vision.

    Attributes:
      b1: decay of the momentum, an average that starts at zero and is not corrected for that; 0 keeps none.
      exponent: the second moment decays by ``1 - step ** -exponent``.
      b2_max: cap of that decay, so that it never freezes.
      threshold: a tensor's update with a larger root mean square is scaled down to it; None lets all be.
      min_dim: matrices with both dimensions at least this keep a factored second moment.
      mu_dtype: type in which the momentum is *stored*; arithmetic is in float32.
    """

    b1: Decay = 0.9
    exponent: Annotated[float, Range(0, 10, "(]")] = 0.8
    b2_max: Decay = 0.999
    threshold: Positive | None = None
    min_dim: Size = 32
    mu_dtype: Precision = "bfloat16"

    def scale(self) -> optax.GradientTransformation:
        def decay(step: jax.Array, exponent: float) -> jax.Array:
            return jnp.minimum(1 - (step + 1).astype(jnp.float32) ** -exponent, self.b2_max)

        steps = [
            optax.scale_by_factored_rms(
                decay_rate=self.exponent, min_dim_size_to_factor=self.min_dim, decay_rate_fn=decay
            )
        ]
        if self.threshold is not None:
            steps.append(optax.clip_by_block_rms(self.threshold))
        if self.b1:
            steps.append(_store(optax.ema(self.b1, debias=False), "ema", self.mu_dtype))
        return optax.chain(*steps)


@dataclasses.dataclass(frozen=True)
class Lion(Checked):
    """Sign of an interpolated momentum (arXiv:2302.06675, algorithm 2).

    It wants a learning rate 3 to 10 times smaller than AdamW's, and a decay larger by as much.

    Attributes:
      b1: weight of the momentum in the step.
      b2: decay of the momentum.
      mu_dtype: type in which the momentum is *stored*; arithmetic is in float32.
    """

    b1: Decay = 0.9
    b2: Decay = 0.99
    mu_dtype: Precision = "float32"

    def scale(self) -> optax.GradientTransformation:
        return _store(optax.scale_by_lion(self.b1, self.b2), "mu", self.mu_dtype)


OPTIMIZERS: dict[str, type] = {"adamw": AdamW, "sgd": Sgd, "adafactor": Adafactor, "lion": Lion}


def _store(inner: optax.GradientTransformation, field: str, dtype: Precision) -> optax.GradientTransformation:
    """``inner`` with one field of its state kept in ``dtype`` between steps and in float32 within them.

    optax raises floats to integer step counts, which strict promotion forbids: hence the context.
    """

    def cast(state: Any, to: Any) -> Any:
        return state._replace(**{field: optax.tree.cast(getattr(state, field), to)})

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            updates, state = inner.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, jnp.dtype(dtype))

    return optax.GradientTransformation(lambda params: cast(inner.init(params), jnp.dtype(dtype)), update)
