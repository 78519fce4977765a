"""The train state: a pytree of step, parameters, optimizer state and their moving average."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax import sharding
from vit_jax.models import Variables
from vit_jax.models.base import abstract_init, split_variables
from vit_jax.objectives import Objective
from vit_jax.train import rng
from vit_jax.trees import flat, unflat
from vit_jax.types import Array, Params


@flax.struct.dataclass
class TrainState:
    """What a step reads and returns.

    Attributes:
      step: number of optimizer steps taken, int32 scalar.
      params: float32 parameters.
      opt_state: state of the optax transformation.
      ema: exponential moving average of ``params``, or None.
      variables: the model's other collections, such as batch statistics; {} for most models.
      objective: what the objective carries from step to step, a momentum teacher for instance; () for most.
    """

    step: Array
    params: Params
    opt_state: Any
    ema: Params | None
    variables: Any = dataclasses.field(default_factory=dict)
    objective: Any = ()

    @property
    def eval_params(self) -> Params | Variables:
        """What to evaluate with: the average where there is one, and the model's other variables where it has such."""
        params = self.params if self.ema is None else self.ema
        return Variables(params, self.variables) if self.variables else params


def abstract_params(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Shapes of ``model``'s parameters, their logical axis names boxed in; ``inputs`` are example inputs or shapes."""
    params: Params = split_variables(abstract_init(model, inputs))[0]
    return params


def make_init(
    model: nn.Module, inputs: tuple[Any, ...], tx: optax.GradientTransformation, objective: Objective, *,
    seed: int, ema: bool, mesh: Mesh,
) -> tuple[Callable[..., TrainState], TrainState, TrainState]:  # fmt: skip
    """How to create the state without ever holding it on one device.

    Args:
      model: unbound module.
      inputs: shapes of the model's inputs, batch 1.
      tx: optimizer.
      objective: what is minimised, for what it carries from step to step.
      seed: of the ``"params"`` stream.
      ema: keep a moving average.
      mesh: device mesh.

    Returns:
      ``init(params=None, variables=None) -> TrainState`` (jitted, sharded; what is given is used instead of fresh
      values, but where it is a shape), the state's shapes and its shardings.
    """

    def finish(params: Params, variables: Any) -> TrainState:
        average = jax.tree.map(jnp.copy, params) if ema else None
        carried = objective.init_state(params)
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), average, variables, carried)

    def draw() -> tuple[Params, Any]:
        x = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), inputs)
        return split_variables(nn.unbox(model.init(rng.stream(seed, "params"), *x)))

    def fresh() -> TrainState:
        return finish(*draw())

    boxed = abstract_params(model, inputs)
    shapes = jax.eval_shape(finish, *split_variables(nn.unbox(abstract_init(model, inputs))))
    params_shardings = sharding.param_shardings(boxed, mesh)
    step: Any = NamedSharding(mesh, P())
    shardings = TrainState(
        step=step,
        params=params_shardings,
        opt_state=sharding.shardings_like(shapes.opt_state, shapes.params, params_shardings, mesh),
        ema=params_shardings if ema else None,
        variables=jax.tree.map(lambda _: step, shapes.variables),
        objective=sharding.shardings_like(shapes.objective, shapes.params, params_shardings, mesh),
    )

    def init(params: Params | None = None, variables: Any = None) -> TrainState:
        if params is None:
            return jax.jit(fresh, out_shardings=shardings)()
        if variables is None and shapes.variables:
            variables = jax.jit(lambda: draw()[1], out_shardings=shardings.variables)()
        given, layouts = flat(params), flat(params_shardings)
        if missing := {path for path, leaf in given.items() if isinstance(leaf, jax.ShapeDtypeStruct)}:
            own = lambda: {path: leaf for path, leaf in flat(draw()[0]).items() if path in missing}  # noqa: E731
            new = jax.jit(own, out_shardings={path: layouts[path] for path in missing})()
            params = unflat(given | new, params)
        return jax.jit(finish, out_shardings=shardings)(params, variables or {})

    return init, shapes, shardings
