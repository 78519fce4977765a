"""The members of a tar shard, and what those beside an image say: labels and captions."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from typing import IO, Any

from vit_jax.data.sources.base import MAX_CLASSES, as_captions
from vit_jax.types import UserError

LABEL_SUFFIXES = (".cls", ".json")
MEMBER_BYTES = 2**20
"""Of a label or of captions no more is read."""

_READ_SUFFIXES = (*LABEL_SUFFIXES, ".txt")
_CAPTION_KEYS = ("caption", "captions", "text")


def members(path: str, file: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """(header, content if perhaps a label or a caption) of each regular member; notices an early end.

    ``tarfile`` alone takes an archive that stops between members for complete.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                if member.isreg():
                    wanted = member.name.lower().endswith(_READ_SUFFIXES)
                    yield member, archive.extractfile(member).read(MEMBER_BYTES) if wanted else b""  # type: ignore
                archive.members.clear()  # type: ignore[attr-defined]  # or it would hold every header
            end = archive.offset
        file.seek(end)
        tail = file.read(512)
        if tail == bytes(512):
            while tail and not any(tail):
                tail = file.read(2**20)
            if not tail:
                return
            reason = "has data after its end mark; join archives with 'tar --concatenate', not with 'cat'"
        else:
            reason = "is truncated: its end mark is missing; fetch or write it again"
    except (tarfile.TarError, EOFError) as e:
        file.seek(0)
        packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
        if packed:
            reason = "is compressed, which allows no random access; decompress it (images do not shrink anyway)"
        else:
            reason = f"is truncated or no tar file ({e}); fetch or write it again"
    raise UserError(f"the tar file {path} {reason}.")


def parse_label(data: bytes, suffix: str, name: str) -> tuple[int, str] | None:
    """(number or -1, class name or "") of a ``.cls`` or ``.json`` member; None for JSON that holds no label.

    ``.cls`` holds a number or a class name; JSON ``label`` or ``cls``, either kind, maybe with the name as ``class``.
    """
    class_name = ""
    try:
        value: Any = data.decode().strip()
        if suffix == ".json":
            value = json.loads(value)
            if isinstance(value, dict):
                class_name = str(value.get("class", ""))
                value = next((value[key] for key in ("label", "cls", "class") if key in value), None)
                if value is None:
                    return None
    except (UnicodeDecodeError, json.JSONDecodeError):
        value = None
    if isinstance(value, str) and re.fullmatch("-?[0-9]+", value):
        value = int(value)
    if isinstance(value, str) and value:
        return -1, value
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"the label {data[:40]!r} of {name} is neither a number nor a class name.")
    if not 0 <= value < MAX_CLASSES:
        raise UserError(f"the label {value} of {name} is outside 0..{MAX_CLASSES - 1}.")
    return value, class_name


def parse_captions(data: bytes, is_json: bool) -> tuple[str, ...] | None:
    """The captions in a ``.txt`` member, one a line, or in JSON ``caption``, ``captions`` or ``text``.

    Returns:
      () if there are none where they should be; None for JSON that holds something else.
    """
    text = data.decode("utf-8", "surrogateescape")
    if not is_json:
        return as_captions([line for line in text.splitlines() if line.strip()])
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    key = next((key for key in _CAPTION_KEYS if key in value), None) if isinstance(value, dict) else None
    return None if key is None else as_captions(value[key])


def is_json(data: bytes) -> bool:
    """Whether it can be parsed."""
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True
