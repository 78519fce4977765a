"""Speed of a model, forward or in training, against the same model in another form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vit_jax import models
from vit_jax.bench.plain import twin
from vit_jax.bench.timing import alternate, processor
from vit_jax.layers.linear import LinearSpec
from vit_jax.layers.linear.specs import FIELDS
from vit_jax.losses import softmax_cross_entropy
from vit_jax.models import cost
from vit_jax.types import Params, UserError

Kind = Literal["forward", "train"]
DTYPES = ("bfloat16", "float32")


def compare(
    kind: Kind, name: str, dtype: str, batch: int, size: int, *, linear: tuple[str, LinearSpec] | None, rounds: int
) -> dict[str, Any]:
    """Times a ViT against one of Flax's own layers in its faster type or, with ``linear``, against itself.

    Args:
      kind: "forward", images to logits; "train", forward, backward and AdamW.
      name: of the model.
      dtype: of the computation; Flax's layers are timed in float32 and in bfloat16.
      batch: images a step.
      size: side of the image, in pixels.
      linear: a structured map for attention and MLPs, after the name that it has in the result; None for none.
      rounds: pairs of measurements.

    Returns:
      The processor, images per second of each, how many times faster the first is than the fastest other one, and its
      share of the dense model's parameters or of the speed of one large product.

    Raises:
      UserError: the model is no ViT.
    """
    model = models.create(name, dtype=dtype)
    if linear and {f.name for f in dataclasses.fields(model)}.issuperset(FIELDS):
        rivals = {linear[0]: model.clone(**dict.fromkeys(FIELDS, linear[1])), "dense": model}
    elif not linear and (plain := twin(model)):
        rivals = {"vit_jax": model, **{f"plain flax {kind}": plain.clone(dtype=kind) for kind in DTYPES}}
    else:
        none = f"{name!r} is none, or no plain one"
        raise UserError(f"bench {kind} compares ViTs, and {none}; take vit_b16 for instance.")
    candidates, sizes = {}, []
    for label, one in rivals.items():
        candidates[label], parameters = candidate(kind, one, batch, size)
        sizes.append(parameters)
    times = alternate(candidates, rounds)
    ours, *others = times.values()
    theirs = min(others, key=lambda timing: timing.median)
    result = {
        "processor": processor(),
        "model": f"{name} {dtype}, {batch} images of {size} px",
        **{f"{label} images/s": batch / t.median for label, t in times.items()},
        **ours.compared("times faster", theirs),
    }
    if linear:
        return {**result, "share of the dense model's parameters": sizes[0] / sizes[1]}
    total = cost.flops(model, model.inputs(size)) * batch * (1 if kind == "forward" else 3)
    peak = cost.peak(jax.local_devices()[0], dtype)
    return {**result, "share of one large product's speed": total / ours.median / peak}


def candidate(kind: Kind, model: Any, batch: int, size: int) -> tuple[Callable[[], Any], int]:
    """What is timed, on random images: a call starts one step and returns its arrays; and how many parameters."""
    images = jax.random.uniform(jax.random.key(0), (batch, size, size, 3))
    labels = jnp.arange(batch) % model.num_classes
    params = jax.jit(lambda: nn.unbox(model.init(jax.random.key(1), images)["params"]))()
    run = (_forward if kind == "forward" else _train)(model, params, images, labels)
    return run, sum(x.size for x in jax.tree.leaves(params))


def _forward(model: Any, params: Params, images: jax.Array, labels: jax.Array) -> Callable[[], Any]:
    run = jax.jit(lambda p, x: model.apply({"params": p}, x))
    return lambda: run(params, images)  # float32 parameters for both, as in training and evaluation


def _train(model: Any, params: Params, images: jax.Array, labels: jax.Array) -> Callable[[], Any]:
    tx = optax.adamw(1e-4, weight_decay=0.1)

    def loss(p: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return softmax_cross_entropy(model.apply({"params": p}, images), labels).mean()

    def step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        p, opt = state
        value, grads = jax.value_and_grad(loss)(p, images, labels)
        updates, opt = tx.update(grads, opt, p)
        return (optax.apply_updates(p, updates), opt), value

    compiled = jax.jit(step, donate_argnums=0)
    state = (params, jax.jit(tx.init)(params))

    def run() -> Any:
        nonlocal state
        state, value = compiled(state, images, labels)
        return value, jax.tree.leaves(state)[0]

    return run
