"""Where a run starts: resume > resume_from > init > scratch, decided in one function."""

from __future__ import annotations

import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util as traverse
import jax
import numpy as np

from vit_jax import checkpoint
from vit_jax.checkpoint import flat, unflat
from vit_jax.config import suggest
from vit_jax.layers.embed import resize_positions
from vit_jax.train.setup import Setup
from vit_jax.train.state import TrainState
from vit_jax.types import Params, UserError

log = logging.getLogger(__name__)


def items(state: TrainState) -> dict[str, Any]:
    """A state as the items of a checkpoint."""
    out = {"params": state.params, "opt_state": flat({"step": state.step, "opt": state.opt_state})}
    return out if state.ema is None else out | {"ema": state.ema}


def from_items(found: Mapping[str, Any], like: TrainState) -> TrainState:
    """Inverse of :func:`items`."""
    rest = unflat(found["opt_state"], {"step": like.step, "opt": like.opt_state})
    return TrainState(rest["step"], found["params"], rest["opt"], found.get("ema"))


def start(setup: Setup, workdir: pathlib.Path) -> tuple[TrainState, str]:
    """The state to train from and a sentence that says where it comes from.

    Raises:
      UserError: checkpoints exist and none can be read; ``init`` does not fit the model.
    """
    c = setup.config
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), setup.shapes, setup.shardings)
    if found := checkpoint.restore(workdir, items(like)):
        return from_items(found[1], like), f"resumed at step {found[0]}"
    if c.resume_from:
        folder = checkpoint.find(c.resume_from)[0]
        read = {k: checkpoint.read_item(folder, k, v) for k, v in items(like).items()}
        return from_items(read, like), f"continues {folder}"
    if c.init:
        loaded, about, folder = checkpoint.load_params(c.init)
        others = tuple(about["class_names"]) != setup.train.info.class_names
        params, notes = adapt(jax.device_get(loaded), setup.init().params, name=str(folder), new_head=others)
        params = jax.tree.map(lambda x, s: jax.device_put(x, s), params, setup.shardings.params)
        return setup.init(params), f"starts from {folder}: " + ("; ".join(notes) or "every parameter taken as it is")
    return setup.init(), "starts from scratch"


def adapt(loaded: Mapping[str, Any], fresh: Params, *, name: str, new_head: bool = False) -> tuple[Params, list[str]]:
    """Fits ``loaded`` parameters to a model with another head or another number of positions.

    Args:
      loaded: nested dictionary of arrays.
      fresh: the model's own parameters; the head is taken from them where shapes differ.
      name: of the source, for errors.
      new_head: leave the loaded head out even where it fits: its classes are others.

    Returns:
      Parameters in the structure of ``fresh``, and what was changed, a phrase each.

    Raises:
      UserError: anything but head and positions is missing, left over or of another shape.
    """
    have, want = (traverse.flatten_dict(dict(t), sep="/") for t in (loaded, fresh))
    head = re.compile(r"(.*/)?(head|pre_logits)/.*")
    out, notes, wrong = {}, [], []
    for path, leaf in want.items():
        value = have.pop(path, None)
        is_head = head.fullmatch(path)
        if value is not None and value.shape == leaf.shape and not (is_head and new_head):
            out[path] = np.asarray(value)
        elif is_head:
            out[path] = leaf
            was = "absent there" if value is None else f"{'x'.join(map(str, value.shape))} there"
            was = "of other classes there" if value is not None and value.shape == leaf.shape else was
            notes.append(f"{path} is new ({was})")
        elif (
            value is not None and "position" in path.split("/") and value.ndim == 3 and value.shape[2] == leaf.shape[2]
        ):
            out[path], note = _positions(path, value, leaf)
            notes.append(note)
        else:
            near = suggest(path, have) if value is None else ""
            there = "is missing" if value is None else f"has the shape {value.shape}, not {leaf.shape}"
            wrong.append(f"{path} {there}{near.rstrip('.')}")
    for path in [p for p in have if head.fullmatch(p)]:
        del have[path]
        notes.append(f"{path} is not used")
    wrong += [f"{path} is left over" for path in have]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise UserError(f"{name} does not fit the model: {'; '.join(wrong[:3])}{more}.")
    return traverse.unflatten_dict(out, sep="/"), notes


def _positions(path: str, value: Any, leaf: Any) -> tuple[Any, str]:
    """Positions for another grid; a square grid plus one optional prefix token is what models here have."""
    sides = {}
    for n in (value.shape[1], leaf.shape[1]):
        prefix = next((p for p in range(2) if round((n - p) ** 0.5) ** 2 == n - p), None)
        if prefix is None:
            raise UserError(f"{path}: {n} positions are no square grid, so they cannot be resized.")
        sides[n] = (prefix, round((n - prefix) ** 0.5))
    (old_prefix, old), (new_prefix, new) = sides[value.shape[1]], sides[leaf.shape[1]]
    if old_prefix != new_prefix:
        raise UserError(
            f"{path}: the grid has {old_prefix} prefix tokens there and {new_prefix} here; use the same pool."
        )
    resized = resize_positions(value, (old, old), (new, new), new_prefix)
    return np.asarray(resized), f"{path} is resized from {old}x{old} to {new}x{new}"


def meta(setup: Setup, raw: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    return {"config": raw, "class_names": list(setup.train.info.class_names), "provenance": dict(provenance)}


def eval_params(setup: Setup, path: str | pathlib.Path) -> tuple[Params, pathlib.Path]:
    """Parameters to evaluate with, laid out over the mesh, and the checkpoint they came from.

    Raises:
      UserError: no readable checkpoint of this model at ``path``.
    """
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), setup.shapes.params, setup.shardings.params
    )
    params, _, folder = checkpoint.load_params(path, like)
    return params, folder
