"""The train state: a pytree of step, parameters, optimizer state and their moving average."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax import sharding
from vit_jax.train import rng
from vit_jax.types import Array, Params


@flax.struct.dataclass
class TrainState:
    """What a step reads and returns.

    Attributes:
      step: number of optimizer steps taken, int32 scalar.
      params: float32 parameters.
      opt_state: state of the optax transformation.
      ema: exponential moving average of ``params``, or None.
    """

    step: Array
    params: Params
    opt_state: Any
    ema: Params | None

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate with: the average where there is one."""
        return self.params if self.ema is None else self.ema


def abstract_params(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Shapes of ``model``'s parameters, their logical axis names boxed in; ``inputs`` are example inputs or shapes."""
    return jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x)["params"], *inputs)


def make_init(
    model: nn.Module, inputs: tuple[Any, ...], tx: optax.GradientTransformation, *, seed: int, ema: bool, mesh: Mesh
) -> tuple[Any, TrainState, TrainState]:
    """How to create the state without ever holding it on one device.

    Args:
      model: unbound module.
      inputs: shapes of the model's inputs, batch 1.
      tx: optimizer.
      seed: of the ``"params"`` stream.
      ema: keep a moving average.
      mesh: device mesh.

    Returns:
      ``init(params=None) -> TrainState`` (jitted, sharded; given parameters are used instead of fresh ones), the
      state's shapes and its shardings.
    """

    def finish(params: Params) -> TrainState:
        average = jax.tree.map(jnp.copy, params) if ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), average)

    def fresh() -> TrainState:
        x = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), inputs)
        return finish(nn.unbox(model.init(rng.stream(seed, "params"), *x)["params"]))

    boxed = abstract_params(model, inputs)
    shapes = jax.eval_shape(fresh)
    params_shardings = sharding.param_shardings(boxed, mesh)
    step: Any = NamedSharding(mesh, P())
    shardings = TrainState(
        step=step,
        params=params_shardings,
        opt_state=sharding.shardings_like(shapes.opt_state, shapes.params, params_shardings, mesh),
        ema=params_shardings if ema else None,
    )

    def init(params: Params | None = None) -> TrainState:
        if params is None:
            return jax.jit(fresh, out_shardings=shardings)()
        return jax.jit(finish, out_shardings=shardings)(params)

    return init, shapes, shardings
