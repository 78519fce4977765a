"""What may be told of a run: names of files and of data, and nothing of where they lie or whose they are."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

from vit_jax.convert.pretrained import Stored
from vit_jax.io.remote import public as without_secrets

PLACES = ("data", "init", "resume_from", "teacher", "imports")
"""Keys of a configuration under which texts are places."""
PRIVATE = ("loggers",)
"""Keys that say where somebody keeps what: accounts, servers."""
_KIND = re.compile(r"((?:[0-9.eE-]+\*)?[a-z_]+:)(?!//)(.*)", re.DOTALL)
_PATH = re.compile(r"""(?<![\w:/.])(?:~|\.{1,2})?(?:/[^\s/'",;:()]+)*/([^\s/'",;:()]*)""")


def place(text: str) -> str:
    """A place by its kind and its last name; repositories of the hub are public names already.

    Example:
      >>> place("folder:/home/ann/cats")
      'folder:cats'
      >>> place("mix:0.7*folder:/a/cats+0.3*csv:/b/dogs.csv?label=breed")
      'mix:0.7*folder:cats+0.3*csv:dogs.csv?label=breed'
    """
    if text.startswith("mix:"):
        return "mix:" + "+".join(map(place, re.split(r"\+(?=[0-9.eE-]+\*)", text[4:])))
    kind, rest = match.groups() if (match := _KIND.fullmatch(text)) else ("", text)
    rest, query, options = without_secrets(rest).partition("?")
    if not rest.startswith("hf://"):
        rest = os.path.basename(rest.rstrip("/"))
    return kind + rest + (query + options if "/" not in options else "")


def words(text: str) -> str:
    """A sentence with the last names of the paths in it: ``"see v.txt"`` for ``"see /home/ann/v.txt"``."""
    return _PATH.sub(lambda found: found[1] or "...", without_secrets(text))


def config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with places as :func:`place` tells them and without what is :data:`PRIVATE`."""
    return {key: _told(value, key in PLACES) for key, value in raw.items() if key not in PRIVATE}


def _told(value: Any, is_place: bool) -> Any:
    if isinstance(value, Mapping):
        return {key: _told(inner, is_place or key in PLACES) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_told(inner, is_place) for inner in value]
    if not isinstance(value, str):
        return value
    absolute = value.startswith(("/", "~")) or re.match(r"[a-z_]+:[/~]", value)
    return place(value) if ("/" in value and is_place) or absolute else value


def stored(model: Stored) -> Stored:
    """Weights whose metadata may be read by everybody."""
    return dataclasses.replace(
        model,
        source=place(model.source),
        notes=tuple(map(words, model.notes)),
        assumed={key: words(note) for key, note in model.assumed.items()},
        config=None if model.config is None else config(model.config),
        provenance={key: value for key, value in model.provenance.items() if key in PROVENANCE},
    )


PROVENANCE = ("vit_jax", "commit", "record", "jax", "python", "devices")
"""What of a provenance is told; the command is not, it names places."""
