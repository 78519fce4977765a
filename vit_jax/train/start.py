"""Where a run starts: resume > resume_from > init > scratch, decided in one function."""

from __future__ import annotations

import functools
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vit_jax import __version__, checkpoint, models, sharding
from vit_jax.compress.restructure import linear_maps, restructure, specs
from vit_jax.config import known
from vit_jax.convert import Stored, run_folder
from vit_jax.convert.read import load
from vit_jax.convert.zoo import place_of
from vit_jax.data import text
from vit_jax.data.classes import mismatch
from vit_jax.data.sources.base import Absent, Info, Source
from vit_jax.io import hub
from vit_jax.models import Variables, describe
from vit_jax.train.adapt import adapt
from vit_jax.train.config import TrainConfig
from vit_jax.train.progress import noted
from vit_jax.train.setup import Setup
from vit_jax.train.state import TrainState
from vit_jax.trees import fields, flat, nested, unflat
from vit_jax.types import Params, UserError

log = logging.getLogger(__name__)


def items(state: TrainState) -> dict[str, Any]:
    """A state as the items of a checkpoint."""
    out = {"params": state.params, "opt_state": flat({"step": state.step, "opt": state.opt_state})}
    optional = {"ema": state.ema, "variables": state.variables, "objective": flat(state.objective)}
    return out | {name: tree for name, tree in optional.items() if tree}


def from_items(found: Mapping[str, Any], like: TrainState) -> TrainState:
    """Inverse of :func:`items`."""
    rest = unflat(found["opt_state"], {"step": like.step, "opt": like.opt_state})
    carried = unflat(found.get("objective", {}), like.objective)
    variables = found.get("variables", {})
    return TrainState(rest["step"], found["params"], rest["opt"], found.get("ema"), variables, carried)


def start(setup: Setup, workdir: pathlib.Path) -> tuple[TrainState, str]:
    """The state to train from and a sentence that says where it comes from.

    Raises:
      UserError: checkpoints exist and none can be read; ``init`` does not fit the model.
    """
    c = setup.config
    _check_room(setup)
    like = _placed(setup.shapes, setup.shardings)
    if found := checkpoint.restore(workdir, items(like), functools.partial(_check, setup)):
        return from_items(found[1], like), f"resumed at step {found[0]}{_changed(setup, found[1]['meta'])}"
    if c.resume_from:
        folder = checkpoint.find(c.resume_from)[0]
        about = checkpoint.read_item(folder, "meta")
        _check_labels(setup, about, folder)
        state = from_items({k: checkpoint.read_item(folder, k, v) for k, v in items(like).items()}, like)
        return state, f"continues {folder}{_changed(setup, about)}{_rate(setup, int(state.step))}"
    if c.init:
        params, variables, name, notes = _initial(setup, c.init)
        return setup.init(sharding.place(params, setup.shardings.params), variables), noted(
            f"starts from {name}", notes
        )
    return setup.init(), "starts from scratch"


def _rate(setup: Setup, step: int) -> str:
    """Where in the schedule a run goes on.

    Raises:
      UserError: at its end.
    """
    c, total = setup.config, setup.total_steps
    if step >= total:
        raise UserError(
            f"resume_from={c.resume_from!r} goes on at step {step:,}, and duration={str(c.duration)!r} ends at step "
            f"{total:,}; lengthen --config.duration, or take the parameters alone with --config.init."
        )
    rate = float(setup.schedule(step))
    tail = "; --config.init would start the schedule anew" if rate < TAIL * c.optim.lr else ""
    return f", at step {step:,} with a learning rate of {rate:.2g}, {rate / c.optim.lr:.0%} of the peak{tail}"


def _check_room(setup: Setup) -> None:
    """Raises :class:`UserError` where no device can hold its part of the state."""
    need = sharding.bytes_per_device(setup.shapes, setup.shardings)
    have = sharding.memory(jax.local_devices()[0])
    if need > have:
        raise UserError(
            f"parameters and optimizer state take {need / 2**30:,.1f} GiB of each device, which has "
            f"{have / 2**30:,.1f}; take a smaller model, or split it over more devices with mesh.fsdp."
        )


def look(config: TrainConfig) -> None:
    """Looks whether what a run starts from is there: opened, not read in full; of the hub the name alone.

    Raises:
      UserError: it is not, or it is damaged or of no known format, or was trained with another tokenizer.
    """
    if config.resume_from:
        checkpoint.read_item(checkpoint.find(config.resume_from)[0], "meta")
    if config.init and (place := place_of(config.init)).startswith("hf://"):
        hub.address(place)
    elif config.init and "://" not in place:
        with load(place, like=describe.fields(config.model)) as found:
            if config.data.text and isinstance(found.model, models.ImageTextModel):
                text.check_same(found.encoder, config.data.text.encoder(), found.source)


TAIL = 0.1
"""Of the peak learning rate: a run that goes on with less hardly learns."""
NUMERICS = ("activation", "norm_epsilon", "stem_numerics", "positions", "cls_mask", "heads")
"""Fields of a model that its parameters do not show."""


def _initial(setup: Setup, source: str) -> tuple[Params, Any, str, list[str]]:
    """Parameters and other variables (None: fresh ones) from ``source`` (any format), its name, and what was changed.

    What is new among the parameters is a shape, to be drawn where it belongs.

    Raises:
      UserError: they cannot be read or do not fit, or are of a model with other heads or another tokenizer.
    """
    with known(setup.config.imports), load(source, like=describe.fields(setup.model)) as found:
        if isinstance(found.model, models.ImageTextModel) == isinstance(setup.model, models.ImageTextModel):
            text.check_same(found.encoder, setup.train.info.encoder, found.source)
        new_head = found.class_names != setup.train.info.class_names
        size = setup.config.augment.size
        params, notes = fitted(found, setup.model, setup.shapes.params, size, new_head=new_head)
        variables, left_out = fitting(moved(found, setup.model), setup.shapes.variables)
    was, norm = found.preprocess, setup.config.augment.norm
    if not np.allclose(was.mean + was.std, norm.mean + norm.std, atol=1e-6):
        kept = was.augment()["norm"]
        kept = kept if isinstance(kept, str) else f"norm(mean={was.mean}, std={was.std})"
        notes.append(f"its images were normalised otherwise (--config.augment.norm='{kept}' keeps that)")
    return params, variables, found.source, [*found.notes, *notes, *left_out]


def moved(found: Stored, ours: Any) -> Mapping[str, Any]:
    """The variables of ``found`` where the model ``ours`` has those of its image encoder."""
    variables, theirs = found.variables, found.model.ENCODER
    if theirs == ours.ENCODER:
        return variables
    if theirs:
        variables = {name: tree[theirs] for name, tree in variables.items() if theirs in tree}
    return {name: {ours.ENCODER: tree} for name, tree in variables.items()} if ours.ENCODER else variables


def fitting(variables: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, list[str]]:
    """``variables`` for a model that has ``wanted`` (arrays or shapes); None and a note if those are others."""
    sizes = [{path: tuple(leaf.shape) for path, leaf in flat(tree).items()} for tree in (variables, wanted)]
    if not variables or sizes[0] == sizes[1]:
        return variables or None, []
    return None, [f"its {', '.join(variables)} are not used"]


def fitted(found: Stored, ours: Any, fresh: Params, size: int, *, new_head: bool = False) -> tuple[Params, list[str]]:
    """The parameters of ``found`` for the model ``ours``, and what was changed, one note each.

    An image model becomes the image encoder of a model that has one, and the other way round.

    Args:
      found: weights in any format.
      ours: the model to fit them to.
      fresh: its own parameters, or their shapes; what ``found`` lacks is taken from them.
      size: side in pixels of its images.
      new_head: leave the head out even where it fits: its classes are others.

    Raises:
      UserError: they do not fit, or are of a model with other heads.
    """
    tree, theirs, full = found.tree(), found.model, fresh
    notes, path = [], ""
    whole = theirs.ENCODER == ours.ENCODER
    if not whole and theirs.ENCODER:
        notes.append(f"only its {theirs.ENCODER} is used")
        theirs, tree = theirs.image_encoder(tree)
    if not whole and ours.ENCODER:
        notes.append(f"its parameters are those of the {ours.ENCODER}, all else is new")
        tree = {k: v for k, v in tree.items() if k not in {path.partition("/")[0] for path in _new(theirs, tree)}}
        path, (ours, fresh) = f"{ours.ENCODER}.", ours.image_encoder(fresh)
    if len({*specs(theirs), *specs(ours)}) > 1:
        maps = linear_maps(theirs, found.preprocess.size), linear_maps(ours, size)
        have, done = restructure(flat(tree), *maps, flat(fresh))
        tree, notes = nested(have), notes + done
    new = _new(theirs, tree) | _new(ours, fresh)
    params, changes = adapt(tree, fresh, name=found.source, new=new, new_head=new_head, resize=found.resize)
    if path:
        params = {**full, path.rstrip("."): params}
    return params, notes + changes + _numerics(theirs, ours, found, path)


def _check(setup: Setup, about: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Raises :class:`checkpoint.Unsuitable` where a run would go on with other classes, tokens or data."""
    try:
        _check_labels(setup, about, folder)
    except UserError as e:
        raise checkpoint.Unsuitable(str(e)) from e
    changes = _changes(setup, about)
    if changes and not setup.config.accept_changed_data:
        raise checkpoint.Unsuitable(
            f"the data of {folder} has changed since ({'; '.join(changes)}): the run would end as neither the old one "
            "nor a new one. Restore it, start in another --workdir (--config.init takes the parameters along), or go "
            "on all the same with --config.accept_changed_data=True."
        )


def _check_labels(setup: Setup, about: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Raises :class:`UserError` where numbers of classes or of tokens would mean others from now on."""
    info = setup.train.info
    was = tuple(about["class_names"])
    if was != info.class_names:
        differs = mismatch(was, info.class_names) or f"numbers its {len(was)} classes, the data names them"
        raise UserError(f"{folder} {differs}; give data.path the classes of training, in that order.")
    if info.encoder is not None:
        text.check_same(text.from_meta(about.get("tokenizer")), info.encoder, str(folder))


def _data(setup: Setup) -> dict[str, dict[str, Any]]:
    """What decides which examples a step sees, as a checkpoint keeps it."""
    return {"training": _part(setup.train), "validation": _part(setup.val)}


def _part(source: Source) -> dict[str, Any]:
    return {"examples": len(source), "digest": source.info.digest}


def facts(setup: Setup, raw: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be the same on all hosts of a run, as plain data; ``raw`` is its whole configuration."""
    sources = {**_data(setup), **{f"{path} {part}": _part(s) for (path, part), s in setup.eval_sources.items()}}
    encoder = setup.train.info.encoder
    tokens = None if encoder is None else checkpoint.text_sum(text.to_meta(encoder))
    names = checkpoint.text_sum(list(setup.train.info.class_names))
    versions = {"vit_jax": __version__, "jax": jax.__version__}
    return {"config": raw, "data": sources, "class names": names, "tokenizer": tokens, "versions": versions}


def _changes(setup: Setup, about: Mapping[str, Any]) -> list[str]:
    """How the data differs from what a checkpoint says of its own; nothing where it does not say."""
    changes = []
    for name, now in _data(setup).items():
        was = about.get("data", {}).get(name, now)
        if was["examples"] != now["examples"]:
            changes.append(f"{now['examples']:,} {name} examples, not {was['examples']:,}")
        elif was["digest"] != now["digest"] and was["digest"] and now["digest"]:
            changes.append(f"other {name} examples, labels or order")
    return changes


def _changed(setup: Setup, about: Mapping[str, Any]) -> str:
    """What is to be said of the data where a run goes on."""
    if "data" not in about:
        return " (it does not tell of its data, as those of earlier versions: whether it is the same was not looked at)"
    changes = _changes(setup, about)
    return f", with changed data ({'; '.join(changes)})" if changes else ""


def _new(model: models.Model, params: Params) -> set[str]:
    """Paths of the parameters that weights may lack."""
    return {path for path, role in flat(model.roles(params)).items() if role.new}


def _numerics(there: Any, here: Any, found: Stored, path: str) -> list[str]:
    """Where two models compute differently with the same parameters, one note each; the towers of both as well.

    Raises:
      UserError: they have other numbers of heads, which is no small difference.
    """
    notes = []
    for key in NUMERICS:
        was, now = getattr(there, key, None), getattr(here, key, None)
        if was == now or None in (was, now):
            continue
        if key == "heads" and found.assumed:
            raise UserError(
                f"{found.source} was converted with {was} heads, which were assumed, and the model has {now}; convert "
                f"the original again with --model, or name the original itself."
            )
        if key == "heads":
            raise UserError(f"{found.source} has {was} heads, the model {now}; add --config.model.{path}heads={was}")
        keeps = f"--config.model.{path}{key}={was} keeps that"
        notes.append(f"its model has {path}{key}={was!r}, this one {now!r} ({keeps})")
    for name, tower in fields(there).items():
        if isinstance(tower, nn.Module) and isinstance(getattr(here, name, None), nn.Module):
            notes += _numerics(tower, getattr(here, name), found, f"{path}{name}.")
    return notes


def meta(setup: Setup, raw: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    info = setup.train.info
    about = {"config": raw, "class_names": list(info.class_names), "provenance": dict(provenance), "data": _data(setup)}
    return about if info.encoder is None else about | {"tokenizer": text.to_meta(info.encoder)}


def training_data(config: TrainConfig, path: str | pathlib.Path) -> Source | None:
    """What a checkpoint tells of its training data, where evaluating takes no more; None where it has to be opened.

    Args:
      config: of the run, with the data to evaluate on.
      path: the checkpoint, or a workdir with one.
    """
    if config.data.val is None or any("train" in e.splits and e.data is None for e in config.evaluators):
        return None
    about = checkpoint.read_item(checkpoint.find(path)[0], "meta")
    examples = about.get("data", {}).get("training", {}).get("examples", config.batch_size)
    encoder = None if config.data.text is None else config.data.text.encoder()
    return Absent(Info(tuple(about["class_names"]), examples, captions=int(encoder is not None), encoder=encoder))


def eval_params(setup: Setup, path: str | pathlib.Path) -> tuple[Params | Variables, pathlib.Path]:
    """Parameters to evaluate with, laid out over the mesh, and the checkpoint they came from.

    Where images of another size are evaluated than were trained on, positions are resized as ``init`` does it.

    Raises:
      UserError: no readable checkpoint of this model at ``path``, or one of other classes.
    """
    shapes, shardings = setup.shapes, setup.shardings
    if (resized := _resized(setup, path)) is not None:
        return resized
    params, about, folder = checkpoint.load_params(path, _placed(shapes.params, shardings.params))
    if guesses := dict.fromkeys(run_folder.assumed_of(about).values()):
        log.warning("%s: %s", folder, "; ".join(guesses))
    _check_suits(setup, about, folder)
    if not shapes.variables:
        return params, folder
    others = checkpoint.read_item(folder, "variables", _placed(shapes.variables, shardings.variables))
    return Variables(params, others), folder


def _check_suits(setup: Setup, about: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Raises :class:`UserError` where a checkpoint is of other tokens or classes than the data."""
    text.check_same(text.from_meta(about.get("tokenizer")), setup.train.info.encoder, str(folder))
    if differs := mismatch(about["class_names"], setup.train.info.class_names):
        raise UserError(f"{folder} {differs}; give data.path the classes of training, in that order.")


def _resized(setup: Setup, path: str | pathlib.Path) -> tuple[Params | Variables, pathlib.Path] | None:
    """As :func:`eval_params` for images of another size than those of training; None for the same."""
    folder = checkpoint.find(path)[0]
    about = checkpoint.read_item(folder, "meta")
    was, now = about.get("config", {}).get("augment", {}).get("size"), setup.config.augment.size
    if was in (None, now):
        return None
    _check_suits(setup, about, folder)
    params, variables, name, notes = _initial(setup, os.fspath(folder))
    new = sorted(path for path, leaf in flat(params).items() if isinstance(leaf, jax.ShapeDtypeStruct))
    if new:
        raise UserError(f"{name} is no checkpoint of this model: it lacks {', '.join(new[:3])}.")
    log.warning(
        "%s was trained with images of %d px and is evaluated with %d px: %s.", name, was, now, "; ".join(notes)
    )
    params = sharding.place(params, setup.shardings.params)
    return (params if variables is None else Variables(params, variables)), folder


def _placed(shapes: Any, shardings: Any) -> Any:
    """How to lay out what is read."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
