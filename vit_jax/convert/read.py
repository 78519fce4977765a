"""Loading from any format."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax.convert import pretrained, run_folder, zoo
from vit_jax.convert.format import Format
from vit_jax.convert.formats import FORMATS
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import into
from vit_jax.data import text
from vit_jax.io.hub import choose
from vit_jax.io.remote import fetch
from vit_jax.io.sidecar import beside
from vit_jax.io.tensors import Tensors, open_tensors
from vit_jax.models import ImageTextModel, describe
from vit_jax.types import UsageError, UserError


@contextlib.contextmanager
def load(
    source: str | pathlib.Path, model: str | None = None, changes: Mapping[str, Any] | None = None
) -> Iterator[Stored]:
    """A model with its weights, from a file, folder, run or address in any format; leaves are read within the context.

    Args:
      source: path, ``hf://org/name[@revision][/file]``, ``gs://...``, ``https://...`` or a tag of :mod:`.zoo`.
      model: what the user says the model is, ``"vit_b16"`` or ``"vit(heads=2)"``; None infers it.
      changes: keys of a run's configuration with other values.

    Raises:
      UserError: it does not exist, is damaged, unknown or of another model.
    """
    path = fetch(zoo.place_of(str(source)))
    if run_folder.matches(path):
        if model is not None:
            raise UsageError(f"{source} knows its own model; leave --model {model} out.")
        yield run_folder.load(path, changes or {})
        return
    if changes:
        raise UsageError(f"{source} is no run, so it has no configuration to change; leave {min(changes)!r} out.")
    path = weights_file(path)
    with open_tensors(path) as theirs:
        yield _foreign(path, theirs, str(source), model)


def _foreign(path: pathlib.Path, theirs: Tensors, source: str, model: str | None) -> Stored:
    fmt = recognise(theirs, source)
    try:
        found = fmt.read(theirs, beside(path))
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(f"the JSON files beside {path} do not describe a model of {fmt.title} ({e!r}).") from e
    module = describe.build(found.model, model)
    shapes = describe.shapes(module, found.preprocess.size)
    rules = fmt.rules(module, found.layout)
    params, notes = into(rules, theirs, shapes, source=source, unused=found.unused)
    names, classes = found.class_names, describe.classes(module)
    if classes != len(names):
        notes.append(f"its {classes} classes are numbered, as no names come with it")
    names = pretrained.numbered(names, classes)
    notes = [f"read as {fmt.name} ({fmt.title})", *found.notes, *notes]
    resize = found.resize or fmt.resize
    if found.encoder is not None:
        text.check_fits(found.encoder, module.text_tower, source)
    return Stored(
        module,
        params,
        found.preprocess,
        names,
        found.output_activation or (module.output_activation if isinstance(module, ImageTextModel) else "softmax"),
        resize,
        source,
        tuple(notes),
        encoder=found.encoder,
    )


def format_of(source: str | pathlib.Path) -> tuple[Format | None, pathlib.Path]:
    """The format of what lies at ``source``, None for ours, and its file or folder on this machine."""
    path = fetch(zoo.place_of(str(source)))
    if run_folder.matches(path):
        return None, path
    path = weights_file(path)
    with open_tensors(path) as theirs:
        return recognise(theirs, str(source)), path


def recognise(theirs: Tensors, source: str) -> Format:
    """The format that tensors of these names are in.

    Raises:
      UserError: none.
    """
    for fmt in FORMATS.values():
        if fmt.matches(theirs.keys()):
            return fmt
    some = ", ".join(list(theirs)[:3]) or "nothing"
    known = ", ".join(f"{f.name} ({f.title})" for f in FORMATS.values())
    raise UserError(f"{source} holds {len(theirs)} tensors ({some}, ...) in no known format; known are {known}.")


def weights_file(path: pathlib.Path) -> pathlib.Path:
    """The file with the weights: ``path`` itself or the one in the folder ``path``.

    Raises:
      UserError: a folder without, or with several of a kind.
    """
    if not path.is_dir():
        return path
    names = [p.name for p in path.iterdir() if p.is_file()]
    if not names:
        raise UserError(f"no checkpoint in {str(path)!r}: the folder holds no file; give a run or a file of weights.")
    return path / choose(names, repr(str(path)))
