"""Prompts: class names put into phrases, and both read from files.

A class name stays as the user wrote it: no lower-casing, no underscores turned into blanks. Write ``great white shark``
rather than ``great_white_shark`` where a tokenizer should see words.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from importlib import resources

from vit_jax.config import suggest
from vit_jax.io import jsonfile
from vit_jax.io import text as texts
from vit_jax.types import UsageError, UserError

TEMPLATES: dict[str, tuple[str, ...]] = {
    name: tuple(rows)
    for name, rows in jsonfile.loads((resources.files("vit_jax.data") / "templates.json").read_bytes()).items()
}
"""``openai``: the 80 of CLIP for ImageNet; ``simple``: the 7 of them that do best together (Radford et al. 2021,
``Prompt_Engineering_for_ImageNet.ipynb``); ``photo``: the one of its section 3.1.4; ``digits``: as the source
``digits_pairs`` words a single digit."""

MAX_BYTES = 2**24
"""A file of class names or templates is no larger."""


def ensemble(class_names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Every class in every template: ``[C][T]`` texts. ``{}`` stands for the name."""
    return [[template.replace("{}", name) for template in templates] for name in class_names]


def read_templates(spec: str) -> tuple[str, ...]:
    """A row of :data:`TEMPLATES`, or the lines (or JSON list) of a file, each with ``{}`` where the name belongs.

    Raises:
      UserError: neither, or a line without ``{}``.
    """
    if spec in TEMPLATES:
        return TEMPLATES[spec]
    if not os.path.isfile(os.path.expanduser(spec)):
        raise UsageError(f"templates={spec!r} is neither a known set nor a file{suggest(spec, TEMPLATES)}")
    lines = _lines(spec, "templates")
    for i, line in enumerate(lines):
        if "{}" not in line:
            raise UserError(f"template {i + 1} of {spec!r} is {line!r}; it lacks {{}}, where the class name belongs.")
    return lines


def read_class_names(path: str) -> tuple[str, ...]:
    """Class names from a file: one a line, in the order of the labels, or a JSON list of strings; kept as written.

    Raises:
      UserError: no such file, not UTF-8, empty, or an entry that is no name.
    """
    return _lines(path, "class names")


_LIST = "; write a list of strings"


def _lines(path: str, what: str) -> tuple[str, ...]:
    name = f"the file {path!r} of {what}"
    text = texts.read(pathlib.Path(path).expanduser(), name, MAX_BYTES)
    lines = texts.lines(text.rstrip()) if text.strip() else []
    entries = jsonfile.parse(text, list, name, _LIST) if path.endswith(".json") else lines
    if not entries:
        raise UserError(f"the {what} {path!r} are empty; write one a line.")
    for i, entry in enumerate(entries):
        if not isinstance(entry, str) or not entry.strip():
            raise UserError(f"entry {i + 1} of the {what} {path!r} is {entry!r}; write one a line, none left blank.")
    return tuple(entry.strip() for entry in entries)
