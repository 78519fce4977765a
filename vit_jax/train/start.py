"""Where a run starts: resume > resume_from > init > scratch, decided in one function."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax import checkpoint, convert
from vit_jax.checkpoint import flat, unflat
from vit_jax.train.adapt import adapt
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
        params, name, notes = _initial(setup, c.init)
        params = jax.tree.map(lambda x, s: jax.device_put(x, s), params, setup.shardings.params)
        return setup.init(params), f"starts from {name}: " + ("; ".join(notes) or "every parameter taken as it is")
    return setup.init(), "starts from scratch"


NUMERICS = ("activation", "norm_epsilon", "stem_numerics", "positions")
"""Fields of a model that its parameters do not show."""


def _initial(setup: Setup, source: str) -> tuple[Params, str, list[str]]:
    """Parameters from ``source`` (any format) fitted to the run's model, their origin's name, and what was changed.

    Raises:
      UserError: they cannot be read or do not fit, or are of a model with other heads.
    """
    with convert.load(source) as found:
        new_head = found.class_names != setup.train.info.class_names
        params, notes = adapt(
            found.tree(), setup.init().params, name=found.source, new_head=new_head, resize=found.resize
        )
    there, here = ({k: getattr(m, k, None) for k in (*NUMERICS, "heads")} for m in (found.model, setup.config.model))
    if there["heads"] != here["heads"]:
        raise UserError(
            f"{found.source} has {there['heads']} heads, the model {here['heads']}; "
            f"add --config.model.heads={there['heads']}"
        )
    notes += [
        f"its model has {k}={there[k]!r}, this one {here[k]!r} (--config.model.{k}={there[k]} keeps that)"
        for k in NUMERICS
        if there[k] != here[k]
    ]
    was, norm = found.preprocess, setup.config.augment.norm
    if not np.allclose(was.mean + was.std, norm.mean + norm.std, atol=1e-6):
        kept = was.augment()["norm"]
        kept = kept if isinstance(kept, str) else f"norm(mean={was.mean}, std={was.std})"
        notes.append(f"its images were normalised otherwise (--config.augment.norm='{kept}' keeps that)")
    return params, found.source, [*found.notes, *notes]


def meta(setup: Setup, raw: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    return {"config": raw, "class_names": list(setup.train.info.class_names), "provenance": dict(provenance)}


def eval_params(setup: Setup, path: str | pathlib.Path) -> tuple[Params, pathlib.Path]:
    """Parameters to evaluate with, laid out over the mesh, and the checkpoint they came from.

    Raises:
      UserError: no readable checkpoint of this model at ``path``, or one of other classes.
    """
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), setup.shapes.params, setup.shardings.params
    )
    params, about, folder = checkpoint.load_params(path, like)
    there, here = about["class_names"], list(setup.train.info.class_names)
    numbered = there == [str(i) for i in range(len(there))]
    if there != here and not numbered:
        odd = [name for name, other in zip(there, here, strict=False) if name != other]
        raise UserError(
            f"{folder} has the classes {_some(there)}, the data {_some(here)}"
            f"{f' (first difference: {odd[0]})' if odd else ''}; give data.path the classes of training, in that order."
        )
    return params, folder


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:3])}, ... ({len(names)})"
