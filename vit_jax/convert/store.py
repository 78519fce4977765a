"""Loading and saving in any format."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax.config import lookup
from vit_jax.convert import base, big_vision, hf, native, npz, open_clip, table, text, timm, zoo
from vit_jax.convert.base import Format, Stored, check_known
from vit_jax.io import atomic
from vit_jax.io.hub import choose
from vit_jax.io.remote import fetch
from vit_jax.io.sidecar import About, beside
from vit_jax.io.tensors import Tensors, open_tensors, write_npz, write_safetensors
from vit_jax.types import UsageError, UserError

_MODULES = (timm, open_clip, hf, npz, big_vision)
FORMATS: dict[str, Format] = {module.FORMAT.name: module.FORMAT for module in _MODULES}
"""Formats of others, by the name that the user writes; ours is ``native``."""
TARGETS = {**FORMATS, native.NAME: None}
FILES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".onnx")
"""Suffixes of files of weights; a target with another one is a folder."""


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
    if native.matches(path):
        if model is not None:
            raise UsageError(f"{source} knows its own model; leave --model {model} out.")
        yield native.load(path, changes or {})
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
    module = base.build(found.model, model)
    shapes = base.shapes(module, found.preprocess.size)
    rules = fmt.rules(module, found.layout)
    params, notes = table.into(rules, theirs, shapes, source=source, unused=found.unused)
    names, classes = found.class_names, base.classes(module)
    if classes != len(names):
        notes.append(f"its {classes} classes are numbered, as no names come with it")
    names = base.numbered(names, classes)
    notes = [f"read as {fmt.name} ({fmt.title})", *found.notes, *notes]
    resize = found.resize or fmt.resize
    if found.encoder is not None:
        text.check_fits(found.encoder, module.text_tower, source)
    return Stored(
        module,
        params,
        found.preprocess,
        names,
        found.output_activation,
        resize,
        source,
        tuple(notes),
        encoder=found.encoder,
    )


def format_of(source: str | pathlib.Path) -> tuple[Format | None, pathlib.Path]:
    """The format of what lies at ``source``, None for ours, and its file or folder on this machine."""
    path = fetch(zoo.place_of(str(source)))
    if native.matches(path):
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


def save(pretrained: Stored, target: str | pathlib.Path, to: str) -> list[str]:
    """Writes the model at ``target`` in the format ``to``: all of it or nothing.

    Args:
      pretrained: what to write; its leaves are read one at a time.
      target: a new folder, or a new file with the format's suffix, which gets a ``.json`` of the same name beside it.
      to: ``"vit_jax"`` or a name in :data:`FORMATS`.

    Returns:
      One human-readable note per thing that the format cannot say or says otherwise.

    Raises:
      UserError: the format cannot express the model; the target exists or cannot be written.
    """
    fmt = lookup(TARGETS, to, "format")
    target = pathlib.Path(target)
    check_target(target, to)
    if fmt is not None:
        check_known(pretrained.model, fmt.title)
    writing = None if fmt is None else fmt.write(pretrained)
    if writing and is_file(target) and (files := [n for n, v in writing.about.items() if isinstance(v, bytes)]):
        raise UserError(f"{files[0]} belongs beside these weights, and {target} is one file; name a folder.")
    try:
        if fmt is None or writing is None:
            with atomic.new_folder(target) as folder:
                native.save(pretrained, folder)
            return []
        tensors = {
            **table.back(fmt.rules(pretrained.model, writing.layout), pretrained.params, name=to),
            **writing.extra,
        }
        if is_file(target):
            _write_file(tensors, writing.about, target)
        else:
            with atomic.new_folder(target) as folder:
                _write_folder(tensors, writing.about, folder / fmt.weights)
        return list(writing.notes)
    except OSError as e:
        raise UserError(f"{target} cannot be written ({e.strerror or e}); nothing was left there.") from e


def check_target(target: pathlib.Path, to: str) -> None:
    """Raises :class:`UserError` where nothing may be written at ``target`` in the format ``to``."""
    fmt = lookup(TARGETS, to, "format")
    suffix = "" if fmt is None else fmt.suffix
    if (is_file(target) and target.suffix != suffix) or (suffix == ".npz" and not is_file(target)):
        form = {"": "a folder", ".npz": "a file ending in .npz"}.get(suffix, f"a folder or a file ending in {suffix}")
        raise UsageError(f"{str(target)!r} is no place for {to}; name {form}.")
    for path in (target, target.with_suffix(".json")) if is_file(target) else (target,):
        if path.exists():
            raise UserError(f"{path} exists and is not overwritten; name another place or remove it.")


def is_file(target: pathlib.Path) -> bool:
    """Whether weights at ``target`` would be one file, by its suffix; anything else names a folder."""
    return target.suffix in FILES


def _write_file(tensors: Tensors, about: About, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(atomic.new_file(path))
        if about:
            beside = stack.enter_context(atomic.new_file(path.with_suffix(".json")))
            beside.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if path.suffix == ".npz":
            write_npz(new, tensors)
        else:
            write_safetensors(new, tensors, {"format": "pt"})


def _write_folder(tensors: Tensors, about: About, weights: pathlib.Path) -> None:
    write_safetensors(weights, tensors, {"format": "pt"})
    for name, content in about.items():
        data = content if isinstance(content, bytes) else (json.dumps(content, indent=2) + "\n").encode()
        weights.with_name(name).write_bytes(data)
