"""From :class:`OptimConfig` to one optax transformation.

The order is fixed: SAM finds the direction, norms of it are clipped, the optimizer scales it, decoupled weight decay
is added, each parameter's multipliers are applied, and the schedule scales all of it. Decay is thus multiplied by the
learning rate (as in AdamW and torch): a published "weight decay 0.3" is meant so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.checks import Checked, Finite, NonNegative, Positive, Range
from vit_jax.config import Choice, Duration
from vit_jax.optim import masks, schedules
from vit_jax.optim.health import track_grad_stats
from vit_jax.optim.optimizers import OPTIMIZERS, AdamW, Optimizer
from vit_jax.optim.sam import EPS, SAM, RelativeLr, SharpnessAware, norm
from vit_jax.types import Params, UserError

LEAST_UNIT = 1e-3
"""What the norm of a parameter's unit counts as at least, so that one that starts as zero can grow."""


@dataclasses.dataclass(frozen=True)
class OptimConfig(Checked):
    """How parameters are updated. Patterns are regular expressions over whole parameter paths (:mod:`.masks`).

    Attributes:
      optimizer: update rule, a row of :data:`OPTIMIZERS` such as "adamw".
      lr: peak learning rate.
      schedule: learning rate over time, a row of :data:`SCHEDULES` such as "cosine".
      warmup: length of the linear rise of the learning rate from 0 to its peak.
      weight_decay: coefficient of decoupled weight decay, multiplied by the learning rate at every step.
      decay_rules: ``(pattern, factor of weight_decay)``, first match wins, every parameter must be covered; empty means
        the kernels of linear maps and convolutions, nothing else.
      clip_norm: largest global norm of the gradient of all trained parameters; ``None`` for no clipping.
      agc: adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171, equation 3), before ``clip_norm``: the
        largest norm of a unit's gradient as a share of the unit's own norm, which counts as 0.001 at least. Units are
        the outputs of kernels and whole vectors, the map to classes is left out; 0.01 is published for batches of 4096
        and networks without norms. ``None`` for no such clipping.
      freeze: patterns of parameters that stay as they are: no state, no gradient norm, no perturbation.
      lr_mult: ``(pattern, factor of the learning rate)``, first match wins, 1 elsewhere.
      layer_decay: factor of the learning rate per layer below the head (BEiT, arXiv:2106.08254; typically 0.65 to 0.9).
      sam: sharpness-aware minimization, a row of :data:`SAM` such as "sam"; ``None`` for the plain gradient.
      bounds: ``(pattern, least, most)``: parameters that are put back between these after every update, as CLIP does
        with its temperature: ``("logit_scale", 0.0, 4.6052)`` (Radford et al. 2021, section 2.5).
    """

    optimizer: Annotated[Optimizer, Choice(OPTIMIZERS, Optimizer)] = dataclasses.field(default=AdamW())
    lr: Positive = 1e-3
    schedule: Annotated[schedules.Schedule, Choice(schedules.SCHEDULES, schedules.Schedule)] = dataclasses.field(
        default=schedules.Cosine()
    )
    warmup: Duration = dataclasses.field(default=Duration(0))
    weight_decay: NonNegative = 0.0
    decay_rules: tuple[tuple[str, NonNegative], ...] = ()
    clip_norm: Positive | None = 1.0
    agc: Positive | None = None
    freeze: tuple[str, ...] = ()
    lr_mult: tuple[tuple[str, Positive], ...] = ()
    layer_decay: Annotated[float, Range(0, 1, "(]", ", or None")] | None = None
    sam: Annotated[SharpnessAware, Choice(SAM, SharpnessAware)] | None = None
    bounds: tuple[tuple[str, Finite, Finite], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for pattern, least, most in self.bounds:
            if not least < most:
                raise UserError(f"bounds of {pattern!r} are {least} and {most}; write the smaller one first.")


def trainable(cfg: OptimConfig, params: Params) -> Any:
    """A tree of bools like ``params`` (arrays or shapes): which parameters ``cfg`` trains.

    Raises:
      UserError: a pattern that matches nothing, or nothing left to train.
    """
    masks.check("freeze", cfg.freeze, params)
    frozen = masks.first_match([(pattern, True) for pattern in cfg.freeze], params, False)
    if all(jax.tree.leaves(frozen)):
        raise UserError(f"freeze={cfg.freeze!r} freezes every parameter; leave at least the head to train.")
    return jax.tree.map(lambda f: not f, frozen)


def build(
    cfg: OptimConfig, params: Params, roles: Any, total_steps: int, steps_of: Callable[[Duration], int]
) -> tuple[optax.GradientTransformationExtraArgs, schedules.ScheduleFn]:
    """The transformation and the learning rate as a function of the step.

    Args:
      cfg: what to build.
      params: unboxed parameters, or their shapes; only paths are read.
      roles: what each of them is to its model, see :meth:`vit_jax.models.roles.Model.roles`.
      total_steps: length of the training.
      steps_of: resolves a :class:`Duration` to steps.

    Returns:
      ``tx``, to be called as ``tx.update(grads, state, params, grad_fn=grad_fn)`` (``grad_fn`` only matters with SAM),
      and ``learning_rate(step)``.

    Raises:
      UserError: a pattern that matches nothing, a parameter that no rule covers, durations that do not fit.
    """
    lr = schedules.make(cfg.schedule, peak=cfg.lr, warmup=steps_of(cfg.warmup), total=total_steps, steps_of=steps_of)
    decay, mult, mask = decay_factors(cfg, params, roles), lr_factors(cfg, params, roles), trainable(cfg, params)
    units = jax.tree.map(lambda role: not (role.part == "head" and role.new), roles)
    if not all(jax.tree.leaves(mask)):
        decay, mult, units = (masks.keep(mask, tree) for tree in (decay, mult, units))
    # Before SAM: one bad leaf of the clean gradient makes every leaf of the perturbed one bad.
    steps = [track_grad_stats()]
    if cfg.sam is not None:
        sam = cfg.sam.transform(_relative(lr, cfg.lr, total_steps))
        steps = [*steps, sam] if cfg.sam.m is None else [sam, *steps]  # with groups nobody computes the clean gradient
    steps += [] if cfg.agc is None else [_clip_units(cfg.agc, units)]
    steps += [] if cfg.clip_norm is None else [_clip(cfg.clip_norm)]
    steps += [cfg.optimizer.scale()]
    steps += [_decay(cfg.weight_decay, decay)] if cfg.weight_decay else []
    steps += [_multiply(mult)] if cfg.lr_mult or cfg.layer_decay is not None else []
    steps += [optax.scale_by_learning_rate(lr)]
    steps += [_bound(masks.keep(mask, limits(cfg, params)))] if cfg.bounds else []
    tx = optax.chain(*steps)
    return tx if all(jax.tree.leaves(mask)) else masks.train_only(tx, mask), lr


def decay_factors(cfg: OptimConfig, params: Params, roles: Any) -> Any:
    """A tree like ``params`` of factors of the weight decay."""
    masks.check("decay_rules", (pattern for pattern, _ in cfg.decay_rules), params)
    found = masks.first_match(cfg.decay_rules, params, None) if cfg.decay_rules else masks.kernels_only(roles)
    return masks.covered(found, params, "decay_rules pattern") if cfg.weight_decay else found


def lr_factors(cfg: OptimConfig, params: Params, roles: Any) -> Any:
    """A tree like ``params`` of factors of the learning rate: ``lr_mult`` times ``layer_decay``."""
    masks.check("lr_mult", (pattern for pattern, _ in cfg.lr_mult), params)
    mult = masks.first_match(cfg.lr_mult, params, 1.0)
    if cfg.layer_decay is None:
        return mult
    return jax.tree.map(lambda a, b: a * b, mult, masks.layer_decay(roles, cfg.layer_decay))


def limits(cfg: OptimConfig, params: Params) -> Any:
    """A tree like ``params`` of pairs (least, most), infinite where there are no bounds."""
    masks.check("bounds", (pattern for pattern, *_ in cfg.bounds), params)
    return masks.first_match([(p, Limits(*ends)) for p, *ends in cfg.bounds], params, Limits())


@dataclasses.dataclass(frozen=True)
class Limits:
    """Where a parameter has to stay."""

    least: float = -float("inf")
    most: float = float("inf")


def _relative(lr: schedules.ScheduleFn, peak: float, total: int) -> RelativeLr:
    """Where ``lr(step)`` lies between its final value (0) and ``peak`` (1); 1 everywhere if it never falls."""
    last, top = float(lr(total)), float(np.float32(peak))

    def relative(step: Any) -> jax.Array:
        if last == top:
            return jnp.ones((), jnp.float32)
        return jnp.clip((lr(step) - last) / (top - last), 0.0, 1.0)

    return relative


def _clip(largest: float) -> optax.GradientTransformation:
    """Global-norm clipping without a division by zero."""

    def clip(updates: Any, _: Any) -> Any:
        scale = jnp.minimum(1.0, largest / jnp.maximum(norm(updates), EPS))
        return jax.tree.map(lambda u: u * scale.astype(u.dtype), updates)

    return optax.stateless(clip)


def _clip_units(share: float, chosen: Any) -> optax.GradientTransformation:
    """Every unit's norm, an output's or a vector's, is ``share`` of the parameter's at most."""

    def one(u: jax.Array, p: jax.Array, clipped: bool) -> jax.Array:
        if not clipped:
            return u
        axes = tuple(range(max(p.ndim - 1, 1))) if p.ndim else ()
        size, own = (jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axes, keepdims=True)) for x in (u, p))
        most = share * jnp.maximum(own, LEAST_UNIT)
        return u * jnp.minimum(1.0, most / jnp.maximum(size, EPS)).astype(u.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(one, updates, params, chosen))


def _decay(rate: float, factors: Any) -> optax.GradientTransformation:
    """Adds ``rate * factor`` times each parameter."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p, f: u + (rate * f) * p if f else u, updates, params, factors)
    )


def _bound(ends: Any) -> optax.GradientTransformation:
    """Cuts each update such that the parameter stays within its :class:`Limits`."""

    def one(u: jax.Array, p: jax.Array, end: Limits) -> jax.Array:
        return u if end == Limits() else jnp.clip(p + u, end.least, end.most) - p

    return optax.stateless(lambda updates, params: jax.tree.map(one, updates, params, ends))


def _multiply(factors: Any) -> optax.GradientTransformation:
    """Multiplies each update by its factor."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: f * u, updates, factors))
