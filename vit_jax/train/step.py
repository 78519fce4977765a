"""The one train step. What varies is handed in: model, objective, optimizer transformation, augmentation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax import hosts, sharding
from vit_jax.metrics import Mean
from vit_jax.models import ModelFn
from vit_jax.models.base import needs_barriers
from vit_jax.objectives import Apply, Metrics, Objective, base
from vit_jax.objectives.base import VARIABLES
from vit_jax.train import rng
from vit_jax.train.state import TrainState
from vit_jax.types import Batch, Params, PRNGKey, UsageError

StepMetrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class GradFn:
    """The gradient of one batch's mean loss as a function of the parameters, for transformations that ask again.

    Every call sees the same images and the same dropout masks.
    """

    objective: Objective
    apply: Apply
    batch: Batch
    rngs: base.Rngs
    micro: int

    def __call__(self, params: Params) -> Params:
        return self.value_and_grad(params)[1]

    def value_and_grad(self, params: Params) -> tuple[tuple[jax.Array, Metrics], Params]:
        """((loss, metrics), gradient) of the whole batch, in ``micro`` slices."""
        return self.objective.value_and_grad(self.apply, params, self.batch, self.rngs, self.micro)

    def over_groups(self, body: Callable[[Callable[[Params], Params]], Any], m: int) -> Any:
        """Mean of ``body(gradient function of one group)`` over groups of ``m`` examples, weighted by valid examples.

        Group i of G holds rows i, i + G, ...: m-sharpness (Foret et al. 2021, section 4.1) that does not depend on
        the number of devices.
        """
        size = self.batch["mask"].shape[0]
        groups = size // m
        assert groups * m == size, (size, m)
        micro = max(1, -(-self.micro // groups))

        def one(i: jax.Array, rows: Batch) -> Any:
            grad_fn = dataclasses.replace(self, batch=rows, rngs=base.fold(self.rngs, i), micro=micro)
            weight = jnp.sum(rows["mask"].astype(jnp.float32))
            return jax.tree.map(lambda x: x * weight.astype(x.dtype), body(grad_fn)), weight

        total, weight = base.summed(one, (jnp.arange(groups), base.split(self.batch, groups)))
        return jax.tree.map(lambda x: x / weight.astype(x.dtype), total)


def check_batch(batch_size: int, accumulate: int, group: int | None, mesh: Mesh | AbstractMesh) -> None:
    """Raises :class:`UsageError` unless ``batch_size`` divides into devices, micro-batches and SAM groups."""
    devices = mesh.shape["replica"] * mesh.shape["fsdp"]
    parts = {"the mesh's replica x fsdp": devices, "accumulate x devices": accumulate * devices}
    if group:
        parts |= {"the SAM group size m": group}
        groups = max(1, batch_size // group)
        parts |= {"SAM groups x their micro-batches x devices": groups * -(-accumulate // groups) * devices}
    for what, number in parts.items():
        if number < 1 or batch_size % number:
            raise UsageError(
                f"batch_size={batch_size} is not divisible by {number} ({what}); "
                f"use {max(1, round(batch_size / max(1, number))) * max(1, number)}."
            )


@dataclasses.dataclass(frozen=True)
class Step:
    """``step(state, batch) -> (state, metrics)``, jitted; the state is donated.

    Attributes:
      jitted: ``(state, batch, frozen) -> (state, metrics)``, compiled; ``frozen`` is what ``frozen_inputs`` returns.
      frozen_inputs: returns arrays that the objective reads and never changes, a distillation teacher's, or None for
        none; it is called at every step and must return the same arrays every time.
    """

    jitted: jax.stages.Wrapped
    frozen_inputs: Callable[[], Any]

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        return self._together(state, batch, self.frozen_inputs())

    @functools.cached_property
    def _together(self) -> Callable[..., tuple[TrainState, StepMetrics]]:
        return hosts.together(self.jitted)

    def trace(self, state: Any, batch: Any) -> jax.stages.Traced:
        """The step traced by JAX and not compiled; ``state`` and ``batch`` may be shapes."""
        return self.jitted.trace(state, batch, self.frozen_inputs())

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """The step lowered to StableHLO; ``state`` and ``batch`` may be shapes."""
        return self.jitted.lower(state, batch, self.frozen_inputs())


def nothing() -> None:
    """No frozen inputs, as for most objectives."""


def views_of(augment: Callable[[Any, Batch], Batch], views: int, key: PRNGKey, batch: Batch) -> Batch:
    """The augmented batch; with several views ``image`` is a tuple of them, and the rest is of the first."""
    first: Any = augment(key, batch)
    if views == 1:
        return first
    others = [augment(jax.random.fold_in(key, i), batch)["image"] for i in range(1, views)]
    return {**first, "image": (first["image"], *others)}


def _mean(measured: Mean | None, before: Any) -> Any:
    """The model's variables after a step; as before where nothing was measured, or no example was valid."""
    if measured is None:
        return before
    some = measured.count > 0
    mean = lambda total, old: jnp.where(some, total / jnp.where(some, measured.count, 1), old).astype(old.dtype)  # noqa: E731
    return jax.tree.map(mean, measured.total, before)


def barriers(platform: str, model: nn.Module) -> dict[str, str]:
    """What a step asks of the compiler in order that ``model.remat`` saves memory and ``model.scan`` compiles fast.

    XLA:CPU drops barriers before it last looks for computations that are equal, and takes the results of the forward
    pass for what was to be computed again: of a ViT with 4 blocks the temporaries stay as they are without ``remat``.
    Only where they are needed: a barrier also keeps loops apart that could be one.
    """
    kept = platform == "cpu" and needs_barriers(model)
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if kept else {}


def compiler_options(mesh: Mesh, model: nn.Module) -> dict[str, str]:
    """What a step of ``model`` asks of the compiler of its devices.

    Weights that ``fsdp`` splits are to be gathered. Where activations are large XLA for TPUs would rather pass their
    parts around in a loop with a part of the product in each turn, and write the sums to memory every time: of 16,448
    rows by 1,024 x 4,096 on 16 chips of v5e it expects 21.8 million cycles so, and 1.1 million if they are gathered.
    """
    platform = mesh.devices.flat[0].platform
    if platform != "tpu" or mesh.shape["tensor"] > 1:
        return barriers(platform, model)
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def make_train_step(
    model: nn.Module,
    objective: Objective,
    tx: optax.GradientTransformationExtraArgs,
    *,
    augment: Callable[[Any, Batch], Batch],
    schedule: Callable[[Any], Any],
    seed: int,
    mesh: Mesh,
    shardings: TrainState,
    accumulate: int = 1,
    ema: float | None = None,
    frozen_inputs: Callable[[], Any] = nothing,
) -> Step:
    """One jitted ``step(state, batch) -> (state, metrics)``; the state is donated.

    Args:
      model: unbound module.
      objective: what is minimised.
      tx: called as ``tx.update(grads, opt_state, params, grad_fn=GradFn)``.
      augment: pure ``f(key, host batch) -> model batch``.
      schedule: step -> learning rate, for the log.
      seed: of all random streams.
      mesh: device mesh.
      shardings: of the state.
      accumulate: number of micro-batches, computed one after the other; the gradient is that of the whole batch.
      ema: decay of the parameters' moving average.
      frozen_inputs: returns what ``objective.bind`` takes, a pytree on the mesh, or None for none: an argument of the
        compiled program, as jit would write arrays of a closure into it, as text.

    Returns:
      The step. Its metrics are float32 scalars: ``loss``, ``lr``, ``grad_norm``, ``update_norm``, what the objective
      measures, and ``finite``, bool[number of trained leaves]: whether each leaf's gradient is.
    """

    def step(state: TrainState, batch: Batch, frozen: Any) -> tuple[TrainState, StepMetrics]:
        bound = objective.bind(frozen, state.objective)
        batch = views_of(augment, objective.views, rng.stream(seed, "augment", state.step), batch)
        rngs = {name: rng.stream(seed, name, state.step) for name in objective.rng_streams}
        grad_fn = GradFn(bound, ModelFn(model, state.variables), batch, rngs, accumulate)
        (loss, metrics), grads = grad_fn.value_and_grad(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, grad_fn=grad_fn)
        params = optax.apply_updates(state.params, updates)
        average = None if ema is None else jax.tree.map(lambda a, p: a + (1 - ema) * (p - a), state.ema, params)
        carried = objective.update_state(state.objective, params, metrics)
        variables = _mean(metrics.pop(VARIABLES, None), state.variables)
        values = {k: v.value() for k, v in metrics.items() if k not in objective.state_metrics}
        values |= {
            "loss": loss,
            "lr": jnp.asarray(schedule(state.step), jnp.float32),
            "update_norm": optax.tree.norm(updates),
            "grad_norm": optax.tree.get(opt_state, "grad_norm"),
            "finite": optax.tree.get(opt_state, "grad_finite"),
        }
        return TrainState(state.step + 1, params, opt_state, average, variables, carried), values

    layouts = (shardings, sharding.data_sharding(mesh), None)  # frozen inputs keep theirs
    out: dict[str, Any] = {"out_shardings": (shardings, NamedSharding(mesh, P())), "donate_argnums": 0}
    jitted = jax.jit(step, in_shardings=layouts, **out, compiler_options=compiler_options(mesh, model))
    return Step(jitted, frozen_inputs)
