"""Sharpness-aware minimisation: the gradient is taken at a point nearby where the loss is higher.

Each variant is a frozen dataclass whose ``transform`` is an optax transformation that replaces the clean gradient by
its own direction; it goes first in the chain and is fed ``grad_fn`` (:class:`GradFn`) by the train step. Norms and
inner products run over the whole parameter vector in float32 and are guarded: no gradient, no perturbation.

``m`` is m-sharpness (SAM, arXiv:2010.01412, section 4.1): the direction is found for each group of ``m`` examples on
its own and averaged; ``None`` takes the batch as one group. It is part of the method, not of the machine: the
published ViT results used the 32 or 64 examples that sat on one accelerator, and smaller groups generalise better.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from vit_jax.checks import INFINITE, Checked, Count, NonNegative, Range
from vit_jax.optim.masks import paths
from vit_jax.types import Array, Params, UserError

EPS = 1e-12
"""Floor of every norm that divides."""
Radius = Annotated[float, Range(0, INFINITE, "()", ", or no sam at all")]
NOISE = 1e-6
"""A component of a vector smaller than this share of it is float32 rounding."""

RelativeLr = Callable[[Array | int], jax.Array]
"""Optimizer step -> where its learning rate lies between the final one (0) and the peak (1)."""
Grad = Callable[[Params], Params]
Direction = Callable[[Params, Grad], Any]
"""``(clean gradient, gradient function) -> direction``, of the batch or of one group."""


class GradFn(Protocol):
    """What the train step hands to ``tx.update(..., grad_fn=)``; the same dropout masks at every call."""

    def __call__(self, params: Params) -> Params:
        """Gradient of the mean loss over the whole batch."""

    def over_groups(self, body: Callable[[Grad], Any], m: int) -> Any:
        """Mean of ``body(group_grad)`` over groups of ``m`` examples, weighted by their valid examples.

        With G groups, group i has the rows i, i + G, i + 2G, ... of the batch.
        """


@runtime_checkable
class SharpnessAware(Protocol):
    """What a row of :data:`SAM` builds.

    Attributes:
      m: examples per group, None for the whole batch.
      passes: gradients that a step costs, on average.
    """

    @property
    def m(self) -> int | None: ...
    @property
    def passes(self) -> float: ...

    def transform(self, relative_lr: RelativeLr) -> optax.GradientTransformationExtraArgs:
        """Clean gradient -> the direction that replaces it."""
        ...


class State(NamedTuple):
    """int32[] steps done, and LookSAM's last ``g_v`` (otherwise empty)."""

    step: jax.Array
    g_v: Any = ()


def dot(a: Any, b: Any) -> jax.Array:
    """Inner product of two trees, float32[]."""
    leaves = jax.tree.map(lambda x, y: jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32)), a, b)
    return sum(jax.tree.leaves(leaves), jnp.zeros((), jnp.float32))


def norm(tree: Any) -> jax.Array:
    """Global L2 norm, float32[]."""
    return jnp.sqrt(dot(tree, tree))


def axpy(scale: jax.Array | float, x: Any, y: Any) -> Any:
    """``y + scale * x``, in the types of ``y``."""
    return jax.tree.map(lambda x, y: y + (scale * x.astype(jnp.float32)).astype(y.dtype), x, y)


def orthogonal(a: Any, b: Any) -> Any:
    """The part of ``a`` orthogonal to ``b``."""
    return axpy(-dot(a, b) / jnp.maximum(dot(b, b), EPS**2), b, a)


def _ascend(params: Params, gradient: Params, rho: jax.Array | float) -> Params:
    return axpy(rho / jnp.maximum(norm(gradient), EPS), gradient, params)


def _need(grad_fn: GradFn | None) -> GradFn:
    if grad_fn is None:
        raise UserError("SAM needs a second gradient; call tx.update(grads, state, params, grad_fn=grad_fn).")
    return grad_fn


def _direct(direction: Direction, m: int | None, clean: Params, params: Params, grad_fn: GradFn) -> Any:
    """``direction`` of the batch, whose clean gradient is there already, or the mean of those of the groups."""
    if m is None:
        return direction(clean, grad_fn)
    return grad_fn.over_groups(lambda group: direction(group(params), group), m)


def _transformation(m: int | None, direction: Callable[[Params, jax.Array, Params, Grad], Params]) -> Any:
    """A transformation from ``direction(params, count, ...)``, a :data:`Direction` given the first two."""

    def update(updates: Any, state: State, params: Any = None, *, grad_fn: Any = None, **_: Any) -> tuple[Any, State]:
        out = _direct(functools.partial(direction, params, state.step), m, updates, params, _need(grad_fn))
        return out, State(optax.safe_increment(state.step))

    return optax.GradientTransformationExtraArgs(lambda params: State(jnp.zeros((), jnp.int32)), update)


@dataclasses.dataclass(frozen=True)
class Sam(Checked):
    """The gradient at ``w + rho * g / ||g||`` (arXiv:2010.01412, eq. 2; for ViT and Mixer arXiv:2106.01548).

    Attributes:
      rho: radius of the perturbation. Published for ImageNet from scratch: 0.05 to 0.2 for ViT, 0.1 to 0.6 for Mixer.
      m: examples per group, each group perturbed by its own gradient (m-SAM); ``None`` perturbs once for the whole
        batch.
    """

    rho: Radius = 0.05
    m: Count | None = None
    passes: ClassVar[float] = 2.0

    def transform(self, relative_lr: RelativeLr) -> optax.GradientTransformationExtraArgs:
        return _transformation(self.m, lambda params, _, g, grad: grad(_ascend(params, g, self.rho)))


@dataclasses.dataclass(frozen=True)
class Asam(Checked):
    """Adaptive SAM: the gradient at ``w + rho * T^2 g / ||T g||``, invariant to rescaling (arXiv:2102.11600, eq. 5).

    ``T = |w| + eta`` for the parameters matching ``weights``, 1 for all others: the official code scales what PyTorch
    calls "weight", which includes the scales of norms, and leaves biases, class token and positions alone.

    Attributes:
      rho: radius of the perturbation, about ten times that of SAM.
      eta: constant added to the absolute value of every weight in ``T``, which would otherwise vanish with the weight.
      weights: regular expression over whole parameter paths; the parameters that match are normalised by their size.
      m: examples per group, each group perturbed by its own gradient (m-SAM); ``None`` perturbs once for the whole
        batch.
    """

    rho: Radius = 0.5
    eta: NonNegative = 0.01
    weights: str = r"(.*/)?(\w*kernel|scale|embedding)"
    m: Count | None = None
    passes: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.weights)
        except re.error as e:
            raise UserError(f"asam weights={self.weights!r} is no regular expression: {e}.") from None

    def scales(self, params: Params) -> Params:
        """The tree ``T``."""
        return jax.tree.map(
            lambda name, w: jnp.abs(w) + self.eta if re.fullmatch(self.weights, name) else jnp.ones_like(w),
            paths(params),
            params,
        )

    def transform(self, relative_lr: RelativeLr) -> optax.GradientTransformationExtraArgs:
        def direction(params: Params, _: jax.Array, g: Params, grad: Grad) -> Params:
            t = self.scales(params)
            tg = jax.tree.map(jnp.multiply, t, g)
            return grad(axpy(self.rho / jnp.maximum(norm(tg), EPS), jax.tree.map(jnp.multiply, t, tg), params))

        return _transformation(self.m, direction)


@dataclasses.dataclass(frozen=True)
class Gsam(Checked):
    """Surrogate-gap SAM (arXiv:2203.08065, algorithm 1).

    SAM's gradient minus ``alpha`` times the part of the clean gradient that is orthogonal to it.

    ``rho_t = rho_min + (rho_max - rho_min) * (lr_t - lr_min) / (lr_max - lr_min)`` follows the learning rate itself and
    stays in [rho_min, rho_max], also in the warm-up, where ``lr_t < lr_min`` would make it negative. The defaults
    are the paper's for ViT-B/16 (table 4). ``alpha=0, rho_min=rho_max`` is SAM.

    Attributes:
      rho_max: radius of the perturbation at the peak learning rate.
      rho_min: radius of the perturbation at the final learning rate.
      alpha: weight of the gradient's orthogonal part (0.01 to 0.1 for Mixer, 0.4 to 1 for ViT).
      m: examples per group, each group perturbed by its own gradient (m-SAM); ``None`` perturbs once for the whole
        batch.
    """

    rho_max: Radius = 0.6
    rho_min: NonNegative = 0.2
    alpha: NonNegative = 0.4
    m: Count | None = None
    passes: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rho_min > self.rho_max:
            raise UserError(f"gsam rho_min={self.rho_min} is not allowed; give a value in [0, rho_max={self.rho_max}].")

    def transform(self, relative_lr: RelativeLr) -> optax.GradientTransformationExtraArgs:
        def direction(params: Params, count: jax.Array, g: Params, grad: Grad) -> Params:
            rho = self.rho_min + (self.rho_max - self.rho_min) * relative_lr(count)
            perturbed = grad(_ascend(params, g, rho))
            return axpy(-self.alpha, orthogonal(g, perturbed), perturbed)

        return _transformation(self.m, direction)


@dataclasses.dataclass(frozen=True)
class LookSam(Checked):
    """SAM every ``every`` steps; between them its sharpness component is reused (arXiv:2203.02714, algorithm 1).

    A SAM step keeps ``g_v``, the part of its gradient orthogonal to the clean one ``g``; a cheap step, which costs one
    gradient, goes along ``g + alpha * ||g|| / ||g_v|| * g_v``. ``g_v`` belongs to the mean gradients also with ``m``,
    and is part of the optimizer state. ``every=1`` is SAM.

    Attributes:
      rho: radius of the perturbation.
      alpha: length of the reused component relative to the gradient.
      every: steps from one SAM step to the next.
      m: examples per group, each group perturbed by its own gradient (m-SAM); ``None`` perturbs once for the whole
        batch.
    """

    rho: Radius = 0.1
    alpha: NonNegative = 0.7
    every: Count = 5
    m: Count | None = None

    @property
    def passes(self) -> float:
        return 1 + 1 / self.every

    def transform(self, relative_lr: RelativeLr) -> optax.GradientTransformationExtraArgs:
        def init(params: Params) -> State:
            return State(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

        def update(
            updates: Any, state: State, params: Any = None, *, grad_fn: Any = None, **_: Any
        ) -> tuple[Any, State]:
            _need(grad_fn)

            def full() -> tuple[Params, Params]:
                both = lambda g, grad: (g, grad(_ascend(params, g, self.rho)))  # noqa: E731 (the same dropout masks)
                clean, sam = _direct(both, self.m, updates, params, grad_fn)
                g_v = orthogonal(sam, clean)
                real = (norm(g_v) > NOISE * norm(sam)).astype(jnp.float32)  # rounding must not be blown up to ||g||
                return sam, jax.tree.map(lambda x: x * real.astype(x.dtype), g_v)

            def cheap() -> tuple[Params, Params]:
                ratio = norm(updates) / jnp.maximum(norm(state.g_v), EPS)
                return axpy(self.alpha * ratio, state.g_v, updates), state.g_v

            out, g_v = jax.lax.cond(state.step % self.every == 0, full, cheap)
            return out, State(optax.safe_increment(state.step), g_v)

        return optax.GradientTransformationExtraArgs(init, update)


SAM: dict[str, type] = {"sam": Sam, "asam": Asam, "gsam": Gsam, "looksam": LookSam}
