"""Loading from any format."""

from __future__ import annotations

import contextlib
import difflib
import json
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vit_jax import architectures
from vit_jax.convert import hf, pretrained, run_folder, zoo
from vit_jax.convert.fields import check_images
from vit_jax.convert.format import Format, Reading
from vit_jax.convert.formats import FORMATS
from vit_jax.convert.locate import locate
from vit_jax.convert.pretrained import Stored
from vit_jax.convert.rules import Rule, into
from vit_jax.data import imagenet, text
from vit_jax.io import atomic
from vit_jax.io.hub import choose
from vit_jax.io.remote import fetch, public, remedy
from vit_jax.io.sidecar import About, beside
from vit_jax.io.tensors import DTYPES, Tensors, open_tensors, write_npz, write_safetensors
from vit_jax.models import ImageTextModel, TwoTower, describe
from vit_jax.trees import nested
from vit_jax.types import UsageError, UserError

ENCODER = TwoTower.ENCODER


@contextlib.contextmanager
def load(
    source: str | pathlib.Path,
    model: str | None = None,
    changes: Mapping[str, Any] | None = None,
    like: Mapping[str, Any] | None = None,
) -> Iterator[Stored]:
    """A model with its weights, from a file, folder, run or address in any format; leaves are read within the context.

    Args:
      source: path, ``hf://org/name[@revision][/file]``, ``gs://...``, ``https://...`` or a tag of :mod:`.zoo`.
      model: what the user says the model is, ``"vit_b16"`` or ``"vit(heads=2)"``; None infers it.
      changes: keys of a run's configuration with other values.
      like: fields of the model that the weights are for, plain data: what would be assumed is taken from it.

    Raises:
      UserError: it does not exist, is damaged, unknown or of another model.
    """
    place, source = zoo.place_of(str(source)), public(str(source))
    path, address = fetch(place), public(place) if "://" in place else ""
    if run_folder.matches(path):
        if model is not None:
            raise UsageError(f"{source} knows its own model; leave --model {model} out.")
        yield run_folder.load(path, changes or {}, address)
        return
    if changes:
        raise UsageError(f"{source} is no run, so it has no configuration to change; leave {min(changes)!r} out.")
    with _located(path, source) as (fmt, theirs, notes, file):
        yield _foreign(fmt, file, theirs, source, notes, model, like or {})


@contextlib.contextmanager
def _located(path: pathlib.Path, source: str) -> Iterator[tuple[Format, Tensors, list[str], pathlib.Path]]:
    """The weights in a file or folder by the names of their format, what was decided, and the file."""
    file = weights_file(path)
    with contextlib.ExitStack() as stack:
        try:
            there = stack.enter_context(open_tensors(file))
            fmt, theirs, notes = recognise(there, source, beside(file))
        except UserError as e:
            if again := remedy(file):
                raise UserError(f"{str(e).removesuffix('.')}{again}.") from None
            raise
        yield fmt, theirs, notes, file


def _foreign(
    fmt: Format, file: pathlib.Path, theirs: Tensors, source: str, located: list[str], model: str | None, like: Any
) -> Stored:
    try:
        found = fmt.read(theirs, beside(file))
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(f"the JSON files beside {file} do not describe a model of {fmt.title} ({e!r}).") from e
    check_images(found.preprocess, source)
    fields, assumed, decided = _decided(found, model, like)
    module = describe.build(fields, model)
    shapes = describe.shapes(module, found.native or found.preprocess.size)
    rules = fmt.reader(theirs).rules(module, found.layout)
    others = _claimed(rules, describe.variables(module, found.preprocess.size))
    params, notes = into(rules, theirs, {**shapes, **others}, source=source, unused=found.unused)
    variables = nested({path: params.pop(path).read() for path in others})
    names, classes = found.class_names, describe.classes(module)
    if not names and classes == imagenet.CLASSES and (told := _said_imagenet(beside(file), source)):
        names = tuple(imagenet.classes().values())
        notes.append(f"its {classes} classes are named as ImageNet-1k's, as {told} says")
    elif classes != len(names):
        notes.append(f"its {classes} classes are numbered, as no names come with it")
    names = pretrained.numbered(names, classes)
    guesses = dict.fromkeys(assumed.values())
    notes = [f"read as {fmt.name} ({fmt.title})", *located, *guesses, *decided, *found.notes, *notes]
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
        variables=variables,
        assumed=assumed,
        native=found.native,
    )


def _claimed(rules: Iterable[Rule], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Those of ``shapes`` whose paths some rule gives."""
    return {path: shapes[path] for rule in rules for path in rule.ours if path in shapes}


def _said_imagenet(about: About, source: str) -> str:
    """What says that ImageNet-1k was trained on last: timm's tag, or one of ours; "" where nothing does."""
    described = about.get("config.json", {})
    images = described.get("pretrained_cfg")
    tag = images.get("tag") if isinstance(images, Mapping) else None
    published = next((row.tag for row in zoo.tags().values() if source in (row.tag, row.place)), "")
    named = (tag, str(described.get("architecture", "")).partition(".")[2], published.partition(".")[2])
    return next((f"the tag {found!r}" for found in named if found and imagenet.is_told(str(found))), "")


def _decided(
    found: Reading, model: str | None, like: Mapping[str, Any]
) -> tuple[Mapping[str, Any], dict[str, str], list[str]]:
    """Fields of the model, those still assumed among them, and a note for each that ``like`` decides."""
    given = {} if model is None else describe.given(model)
    fields, assumed, notes = found.model, {}, []
    for path, note in found.assumed.items():
        if _at(given, path) is not None:
            continue
        value = _at(like, path) or _at(like, f"{ENCODER}.{path}") or _at(like, path.removeprefix(f"{ENCODER}."))
        if path.endswith("heads") and isinstance(value, int):
            fields = describe.over(fields, nested({path.replace(".", "/"): value}))
            notes.append(f"{path}={value} as of the model, as the weights do not tell")
        else:
            assumed[path] = note
    return fields, assumed, notes


def _at(fields: Any, path: str) -> Any:
    """What lies at ``path`` in nested fields, None for nothing."""
    for part in path.split("."):
        fields = fields.get(part) if isinstance(fields, Mapping) else None
    return fields


def format_of(source: str | pathlib.Path) -> Format | None:
    """The format of what lies at ``source``, None for ours.

    Raises:
      UserError: nothing does, or it is damaged or in no known format.
    """
    path = fetch(zoo.place_of(str(source)))
    if run_folder.matches(path):
        return None
    with _located(path, public(str(source))) as (fmt, _, _, _):
        return fmt


@contextlib.contextmanager
def weights_of(source: str | pathlib.Path) -> Iterator[tuple[Format | None, pathlib.Path]]:
    """The format of what lies at ``source``, None for ours, and its file or folder on this machine.

    Weights that lie under a prefix, or under other names, are written out for the time being as their format has them.
    """
    path = fetch(zoo.place_of(str(source)))
    if run_folder.matches(path):
        yield None, path
        return
    with _located(path, public(str(source))) as (fmt, theirs, notes, file), tempfile.TemporaryDirectory() as folder:
        if notes:
            about, file = (
                beside(file),
                pathlib.Path(folder, f"model{'.npz' if file.suffix == '.npz' else '.safetensors'}"),
            )
            arrays = {name: tensor for name, tensor in theirs.items() if tensor.dtype in DTYPES.values()}
            write_npz(file, arrays) if file.suffix == ".npz" else write_safetensors(file, arrays, {"format": "pt"})
            for name, content in about.items():
                if isinstance(content, pathlib.Path):
                    file.with_name(name).symlink_to(content.absolute())
                else:
                    atomic.write_text(file.with_name(name), json.dumps(content))
        yield fmt, file


def recognise(theirs: Tensors, source: str, about: About) -> tuple[Format, Tensors, list[str]]:
    """The format that tensors are in, those of it by its names, and a note for each thing that was decided.

    Raises:
      UserError: none; it names what the ``config.json`` beside them says that they are.
    """
    located = locate(theirs, lambda names: any(fmt.matches(names) for fmt in FORMATS.values()), source)
    if located is None:
        some = ", ".join(list(theirs)[:3]) or "nothing"
        known = ", ".join(f"{f.name} ({f.title})" for f in FORMATS.values())
        told = about.get("config.json", {})
        named = next((told[key] for key in ("model_type", "architecture") if isinstance(told.get(key), str)), None)
        what = (
            f", of a model that its config.json calls {named!r} and that none of them has{_near(named)}"
            if named
            else ""
        )
        raise UserError(
            f"{source} holds {len(theirs)} tensors ({some}, ...) in no known format{what}; known are {known}."
        )
    own, notes = located
    fmt = next(fmt for fmt in FORMATS.values() if fmt.matches(own.keys()))
    own, more = fmt.spelled(own)
    return fmt, own, [*notes, *more]


def _near(named: str) -> str:
    """The kinds of models that are read and called most like ``named``, in parentheses."""
    known = {*hf.FAMILIES, *architectures.ALIASES}
    near = difflib.get_close_matches(named, known - {named}, n=2, cutoff=0.7)
    return f" (nearest that are read: {', '.join(near)})" if near else ""


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
