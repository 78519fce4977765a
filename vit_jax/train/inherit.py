"""What a run takes over from the weights it starts from: all for which its configuration says ``init``."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax import checkpoint, models
from vit_jax.config import Imports, change, known, parse, spec_fields
from vit_jax.convert import Stored, run_folder
from vit_jax.convert.read import load
from vit_jax.data import text
from vit_jax.data.tokenizer import Tokenizer, open_tokenizer
from vit_jax.models import describe
from vit_jax.train.config import TrainConfig
from vit_jax.types import UsageError, UserError

log = logging.getLogger(__name__)

INIT = "init"
"""In place of a value, or of the name of a model or an objective: as the weights of ``init`` are."""
TOKENIZER = "data.text.tokenizer"
PLACES = ("init", "resume_from")
"""Keys whose values are places, one of which may well be called so."""


def resolved(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """``raw`` with what it takes over from the weights that ``init`` names.

    That may be the ``model`` and the ``objective``, where fields beside the name come on top; ``size``, ``crop``,
    ``interpolation`` and ``norm`` of ``augment``, ``canvas`` and ``frame`` of ``data``, ``tokenizer`` and ``length`` of
    ``data.text``. Without ``data.text`` the model is the image encoder of an image-text model. A tokenizer that needs
    a file stays ``init``: :func:`with_tokenizer` finds it.

    Raises:
      UserError: there is no ``init``, or it cannot be read, is of a model of another kind than the data asks for, or
        does not say what is asked of it.
    """
    given = raw.get("model")
    if isinstance(given, str) and given.startswith(f"{INIT}("):
        raw = {**raw, "model": spec_fields(given, {INIT: models.NAMES["vit"]}, "config.model")}
    asked = dict(_asked(raw))
    if not asked.keys() - {TOKENIZER}:
        return raw
    if not isinstance(place := raw.get("init"), str):
        raise UsageError(
            f"{min(asked, key=len)}=init is that of the weights that are named by --config.init=PLACE; give that, too."
        )
    imports = parse(Imports, raw.get("imports", ()), "config.imports")
    with known(imports), load(place) as found, known(found.imports):
        theirs = _of_weights(found, raw)
        imports = (*imports, *(i for i in found.imports if i not in imports))
        for note in dict.fromkeys(found.assumed.values()):
            log.warning("%s: %s", found.source, note)
    if silent := sorted(asked.keys() - theirs.keys()):
        raise UserError(f"{silent[0]}=init is asked of {found.source}, which does not say that; give a value.")
    more = {k: {n: v for n, v in value.items() if n != "name"} for k, value in asked.items() if value != INIT}
    taken = {k: describe.over(theirs[k], more[k]) if k in more else theirs[k] for k in asked}
    return change(raw, (taken | ({"imports": imports} if imports else {})).items())


def with_tokenizer(config: TrainConfig, workdir: pathlib.Path | str | None = None) -> TrainConfig:
    """``config`` with the tokenizer itself where it says ``init``.

    It is that of the checkpoints in ``workdir``, if there are any: a run that goes on needs the weights no more that it
    began with. Else it is that of ``resume_from`` or ``init``.

    Raises:
      UserError: they cannot be read, or came without a tokenizer.
    """
    c = config.data.text
    if c is None or c.tokenizer != INIT:
        return config
    encoder = None
    if workdir is not None:
        with contextlib.suppress(UserError):
            encoder = text.from_meta(checkpoint.read_item(checkpoint.find(workdir)[0], "meta").get("tokenizer"))
    if encoder is None:
        if not (place := config.resume_from or config.init):
            raise UsageError(f"{TOKENIZER}=init is that of the weights that --config.init=PLACE names; give that, too.")
        with known(config.imports), load(place) as found:
            encoder = _encoder(found)
    own = dataclasses.replace(c, tokenizer=encoder.tokenizer)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, text=own))


def _asked(raw: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that is to be taken over."""
    for key, value in raw.items():
        said = value.get("name") if isinstance(value, Mapping) else value
        if isinstance(said, str) and said == INIT and key not in PLACES:
            yield f"{path}{key}", value
        elif isinstance(value, Mapping):
            yield from _asked(value, f"{path}{key}.")


def _of_weights(found: Stored, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> what a run like ``raw`` takes over from ``found``.

    Raises:
      UserError: its model is none of texts, which ``raw`` reads, or it came without a tokenizer.
    """
    model, own = found.model, run_folder.run_config(found)
    data = raw["data"] if isinstance(raw.get("data"), Mapping) else {}
    out: dict[str, Any] = {}
    if texts := data.get("text"):
        if not model.ENCODER:
            raise UserError(f"{found.source} is a model of images alone, and data.text asks for one of texts, too.")
        if isinstance(texts, Mapping) and INIT in (texts.get("tokenizer"), texts.get("length")):
            encoder = _encoder(found)
            out |= {TOKENIZER: _spec(encoder.tokenizer), "data.text.length": encoder.length}
    elif model.ENCODER:
        model = getattr(model, model.ENCODER)
    p, size = found.preprocess, raw["augment"].get("size") if isinstance(raw.get("augment"), Mapping) else None
    if isinstance(size, int) and size > 0:
        p = dataclasses.replace(p, size=size, canvas=p.canvas and round(p.canvas * size / p.size))
    out |= {f"augment.{k}": v for k, v in p.augment().items()} | {f"data.{k}": v for k, v in p.data().items()}
    fields = {k: v for k, v in describe.describe(model).items() if k != "num_classes"}
    return out | {"model": fields, "objective": own.get("objective", {"name": "classify"})}


def _encoder(found: Stored) -> text.TextCodec:
    if found.encoder is None:
        raise UserError(
            f"{found.source} came without a tokenizer; put its files beside the weights, or name one: "
            f"--config.{TOKENIZER}=clip, json:FILE or sentencepiece:FILE."
        )
    return found.encoder


def _spec(tokenizer: Tokenizer) -> str:
    """The tokenizer's name where it has one that needs no file."""
    name = text.section(text.TextCodec(tokenizer, 1))["tokenizer"]
    with contextlib.suppress(UserError):
        if open_tokenizer(name).fingerprint == tokenizer.fingerprint:
            return name
    return INIT
