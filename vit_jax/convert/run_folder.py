"""Our own format: a folder like that of a run, so that ``predict``, ``train`` and ``evaluate`` take it as it is."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import checkpoint, imports, models
from vit_jax.augment import Augment
from vit_jax.checks import Pixels
from vit_jax.config import Choice, Imports, change, known, named, parse, record, record_of
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.pretrained import Described, Stored, leaves, numbered
from vit_jax.data.framing import Framing
from vit_jax.data.text import TextCodec, from_meta, section, to_meta
from vit_jax.io import atomic, installation, mirror
from vit_jax.io.tensors import Tensors
from vit_jax.layers.embed import RESIZES
from vit_jax.models.describe import classes, describe, shapes
from vit_jax.objectives import OBJECTIVES, Objective
from vit_jax.types import UserError

NAME = "vit_jax"
META: dict[str, Any] = {"config": dict[str, Any], "class_names": list[str], "resize": Literal[tuple(RESIZES)] | None}
"""What is needed of a checkpoint's metadata."""
CONFIG: dict[str, Any] = {"model": Any, "data": dict[str, Any], "augment": dict[str, Any]}
"""What is needed of the configuration in them."""


def matches(path: pathlib.Path) -> bool:
    """Whether ``path`` is a workdir, its ``checkpoints`` or one checkpoint."""
    return path.is_dir() and bool(
        (path / checkpoint.FOLDER).is_dir() or (path / "params").is_dir() or checkpoint.steps(path)
    )


def load(path: pathlib.Path, changes: Mapping[str, Any] | None = None, address: str = "") -> Stored:
    """The newest readable checkpoint at ``path``: its moving average where there is one.

    Args:
      path: a run, or one checkpoint.
      changes: keys of the run's configuration with other values.
      address: where it was fetched from; what it imports is then code of others.

    Raises:
      UserError: none can be read; its imports are gone, or came with it and are not among ``changes``.
    """
    changes = changes or {}
    tree, meta, folder = checkpoint.load_params(path)
    meta = record_of(meta, META, f"the meta of {folder}")
    home = folder.parents[folder.parent.name == checkpoint.FOLDER]
    stored = imports.recorded(meta["config"], address or home)
    raw = record_of(change(stored, changes.items()), CONFIG, f"the configuration of {folder}")
    own = _imports(raw)
    with known(own):
        model = parse(Annotated[Any, Choice(models.NAMES, nn.Module)], raw["model"], "model")
        objective = parse(Annotated[Any, Choice(OBJECTIVES, Objective)], raw.get("objective", "classify"), "objective")
    augment = parse(Augment, {**raw["augment"], "train": ()}, "augment")  # what training did to images matters no more
    canvas = record_of(raw["data"], {"canvas": Pixels | None}, "data").get("canvas", 256)
    frame = parse(Framing, raw["data"].get("frame", {}), "data.frame")
    headless = "model.num_classes" in changes and isinstance(model, models.ImageModel) and model.num_classes == 0
    names = () if headless else tuple(meta["class_names"])
    params, encoder = leaves(tree), from_meta(meta.get("tokenizer"))
    if headless:
        params = {path: leaf for path, leaf in params.items() if path.partition("/")[0] != "head"}
    assumed = assumed_of(meta)
    variables = checkpoint.read_item(folder, "variables") if "variables" in meta["checksums"] else {}
    model = _fitted(model, params, names, encoder)
    wanted, there = shapes(model, augment.size), {path: tuple(leaf.shape) for path, leaf in params.items()}
    differs = sorted(path for path in {**wanted, **there} if wanted.get(path) != there.get(path))
    if objective.output_activation is None:  # its head, if it has one, is not for the classes of the data
        differs = [path for path in differs if path.partition("/")[0] != "head"]
    if differs:
        raise UserError(
            f"{folder} holds {differs[0]} of the shape {there.get(differs[0])}, and its configuration and {len(names)} "
            f"class names ask for {wanted.get(differs[0])}; {_why(differs[0], changes)}."
        )
    return Stored(
        model,
        params,
        Preprocess.of(augment, canvas, frame),
        names,
        objective.output_activation or "softmax",
        meta.get("resize", "bilinear"),
        mirror.shown(str(folder)),
        (*dict.fromkeys(assumed.values()), *imports.changed(own, imports.texts(stored))),
        config={**raw, "imports": [str(i) for i in own]} if own else raw,
        imports=own,
        provenance=meta.get("provenance", {}),
        encoder=encoder,
        variables=variables,
        assumed=assumed,
    )


def _why(path: str, changes: Mapping[str, Any]) -> str:
    """Why the parameter ``path`` has another shape than the model's, and what helps."""
    given = ", ".join(f"{key}={value}" for key, value in changes.items() if key.partition(".")[0] == "model")
    if not given:
        return "it is damaged, or was changed"
    bare = ", or its head, --config.model.num_classes=0: features need none" if path.startswith("head/") else ""
    return f"it was not trained with {given}; leave that out{bare}"


def _imports(raw: Mapping[str, Any]) -> Imports:
    """Those of a run, run; where the user named some for what is being built, those of others are left out."""
    found = raw.get("imports", ())
    if named() and isinstance(found, tuple):
        found = [i for i in found if not (isinstance(i, imports.Recorded) and i.refused)]
    return parse(Imports, found, "imports")


def assumed_of(meta: Mapping[str, Any]) -> dict[str, str]:
    """What was assumed of the model when its weights were converted, see :class:`.pretrained.Described`."""
    provenance = meta.get("provenance")
    assumed = provenance.get("assumed") if isinstance(provenance, Mapping) else None
    return {str(key): str(note) for key, note in assumed.items()} if isinstance(assumed, Mapping) else {}


def _fitted(model: Any, params: Tensors, names: tuple[str, ...], encoder: TextCodec | None) -> Any:
    """The model of a configuration as it was fitted to its data: to their classes, or to their texts."""
    if isinstance(model, models.ImageModel):
        return model.clone(num_classes=len(names))
    tower = model.text_tower
    end = {} if encoder is None else {"end_id": encoder.tokenizer.end_id}
    token, position = (params.get(f"text_tower/{name}/embedding") for name in ("token", "position"))
    if token is None or position is None:
        return model
    vocab_size, length = token.shape[0], position.shape[1] - (tower.pool == "cls")
    return model.clone(text_tower=tower.clone(vocab_size=vocab_size, length=length, **end))


def run_config(pretrained: Described) -> dict[str, Any]:
    """The configuration of its run, or one with its model and preprocessing that only lacks the data.

    It is where every version of this package, earlier ones too, looks for them and for the output activation, which is
    the objective's; and ``train`` and ``evaluate`` go on from it.
    """
    if pretrained.config is not None:
        return json.loads(json.dumps(pretrained.config, default=record))
    fields = {k: v for k, v in describe(pretrained.model).items() if k != "num_classes"}
    p, encoder = pretrained.preprocess, pretrained.encoder
    data = {"path": "", **p.data()} | ({"text": section(encoder)} if encoder else {})
    raw = {"model": fields, "data": data, "augment": p.augment(), "objective": _objective(pretrained)}
    return json.loads(json.dumps(raw, default=record))


def _objective(pretrained: Described) -> dict[str, Any]:
    """What the model was trained with, as far as it shows."""
    model = pretrained.model
    if not isinstance(model, models.ImageTextModel):
        return {"name": "classify", "output_activation": pretrained.output_activation}
    loss = {"loss": "sigmoid"} if model.output_activation == "sigmoid" else {}
    captioner = any(field.name == "decoder" for field in dataclasses.fields(model))
    return {"name": "coca" if captioner else "contrast", **loss}


def save(pretrained: Stored, folder: pathlib.Path) -> None:
    """Writes ``config.json`` and ``checkpoints/0`` into ``folder``.

    Raises:
      UserError: it cannot be written.
    """
    raw = run_config(pretrained)
    tree: dict[str, Any] = pretrained.tree(jnp.asarray)
    provenance: dict[str, Any] = {
        **installation.provenance(),
        "converted": pretrained.source,
        "notes": list(pretrained.notes),
    }
    provenance |= {"assumed": dict(pretrained.assumed)} if pretrained.assumed else {}
    names = list(numbered(pretrained.class_names, classes(pretrained.model)))
    meta: dict[str, Any] = {"config": raw, "class_names": names, "provenance": provenance, "resize": pretrained.resize}
    if pretrained.encoder is not None:
        meta["tokenizer"] = to_meta(pretrained.encoder)
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(tree))
    writer = checkpoint.Checkpoints(folder, buffer=max(2**26, 2 * largest))
    writer.save(0, {"params": tree} | ({"variables": pretrained.variables} if pretrained.variables else {}), meta, {})
    writer.close()
    try:
        atomic.write_text(folder / "config.json", json.dumps(raw, indent=1, default=record) + "\n")
    except OSError as e:
        raise UserError(f"{folder} cannot be written ({e.strerror}); choose another place.") from e
