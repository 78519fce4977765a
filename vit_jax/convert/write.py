"""Saving in any format."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterable

from vit_jax.config import lookup
from vit_jax.convert import rules, run_folder
from vit_jax.convert.format import Format, check
from vit_jax.convert.formats import FILES, FORMATS, TARGETS
from vit_jax.convert.pretrained import Stored, leaves
from vit_jax.io import atomic, jsonfile
from vit_jax.io.sidecar import About
from vit_jax.io.tensors import Tensors, write_npz, write_safetensors
from vit_jax.types import UsageError, UserError


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
        check(pretrained.model, fmt, FORMATS.values())
    writing = None if fmt is None else fmt.write(pretrained)
    if writing and is_file(target) and (files := [n for n, v in writing.about.items() if isinstance(v, bytes)]):
        raise UserError(f"{files[0]} belongs beside these weights, and {target} is one file; name a folder.")
    try:
        if fmt is None or writing is None:
            with atomic.new_folder(target) as folder:
                run_folder.save(pretrained.fitted(), folder)
            return []
        rows = fmt.rules(pretrained.model, writing.layout)
        tensors = {
            **rules.back(rows, {**pretrained.params, **_variables(pretrained, rows, fmt)}, name=to),
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


def _variables(pretrained: Stored, rows: Iterable[rules.Rule], fmt: Format) -> Tensors:
    """The model's collections besides the parameters, by path.

    Raises:
      UserError: the format has no place for them.
    """
    found = leaves(pretrained.variables)
    known = {path for row in rows for path in row.ours}
    if lost := dict.fromkeys(path.partition("/")[0] for path in found if path not in known):
        raise UserError(f"{fmt.title} has no place for this model's {', '.join(lost)}; write it as vit_jax.")
    return found


def check_target(target: pathlib.Path, to: str) -> None:
    """Raises :class:`UserError` where nothing may be written at ``target`` in the format ``to``."""
    fmt = lookup(TARGETS, to, "format")
    suffix = "" if fmt is None else fmt.suffix
    known = is_file(target) and (suffix or target.suffix in (".safetensors", ".npz"))  # "x.pth" may be a folder of ours
    if (known and target.suffix != suffix) or (suffix == ".npz" and not is_file(target)):
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
            jsonfile.write(beside, about)
        if path.suffix == ".npz":
            write_npz(new, tensors)
        else:
            write_safetensors(new, tensors, {"format": "pt"})


def _write_folder(tensors: Tensors, about: About, weights: pathlib.Path) -> None:
    write_safetensors(weights, tensors, {"format": "pt"})
    for name, content in about.items():
        data = content if isinstance(content, bytes) else (json.dumps(content, indent=2) + "\n").encode()
        weights.with_name(name).write_bytes(data)
