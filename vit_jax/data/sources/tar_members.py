"""The members of a tar shard, and what those beside an image say: labels and captions."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import IO, Any

from vit_jax.data.sources.base import MAX_CLASSES, as_captions
from vit_jax.data.sources.columns import as_label
from vit_jax.io import jsonfile
from vit_jax.io import text as texts
from vit_jax.types import UserError

LABEL_SUFFIXES = (".cls", ".json")
MEMBER_BYTES = 2**20
"""Of a label or of captions no more is read."""

_HEADER_BYTES = 2**24
"""Of a header, which may hold a long name, no more is read."""
_READ_SUFFIXES = (*LABEL_SUFFIXES, ".txt")
_CAPTION_KEYS = ("caption", "captions", "text")


class _Cautious:
    """A file that is asked for a header's length of bytes at a time: a header may claim to be of any length."""

    def __init__(self, file: IO[bytes]):
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._read(size)


def members(path: str, file: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """(header, content if perhaps a label or a caption) of each member but folders; notices an early end.

    ``tarfile`` alone takes an archive that stops between members for complete.
    """
    try:
        with tarfile.open(fileobj=_Cautious(file), mode="r:") as archive:  # type: ignore[call-overload]
            while (member := archive.next()) is not None:
                wanted = is_file(member) and member.name.lower().endswith(_READ_SUFFIXES)
                if not member.isdir():
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
    except (tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError) as e:
        # the library knows its own errors, and lets others through, of numbers in extended headers for instance
        file.seek(0)
        packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
        if packed:
            reason = "is compressed, which allows no random access; decompress it (images do not shrink anyway)"
        else:
            reason = f"is truncated or no tar file ({e}); fetch or write it again"
    raise UserError(f"the tar file {path} {reason}.")


def is_file(member: tarfile.TarInfo) -> bool:
    """Whether the member's bytes lie in the archive as they are."""
    return member.isreg() and not member.issparse()


def parse_label(data: bytes, suffix: str, name: str) -> tuple[int, str] | None:
    """(number or -1, class name or "") of a ``.cls`` or ``.json`` member; None for JSON that holds no label.

    ``.cls`` holds a number or a class name; JSON ``label`` or ``cls``, either kind, maybe with the name as ``class``.
    """
    class_name = ""
    try:
        value: Any = texts.decode(data).strip()
        if suffix == ".json":
            value = jsonfile.loads(value)
            if isinstance(value, dict):
                named = value.get("class", "")
                class_name = str(named) if isinstance(named, str | int) else ""
                value = next((value[key] for key in ("label", "cls", "class") if key in value), None)
                if value is None:
                    return None
        label = as_label(value)
    except ValueError as e:  # no UTF-8, no JSON, or no label
        raise UserError(f"the label {data[:40]!r} of {name} is neither a number nor a class name ({e}).") from None
    if isinstance(label, str) and re.fullmatch("-?[0-9]{1,100}", label):
        label = int(label)
    if isinstance(label, str):
        return -1, label
    if label is None:
        raise UserError(f"the label {data[:40]!r} of {name} is neither a number nor a class name.")
    if not 0 <= label < MAX_CLASSES:
        raise UserError(f"the label {label} of {name} is outside 0..{MAX_CLASSES - 1}.")
    return label, class_name


def parse_captions(data: bytes, is_json: bool) -> tuple[str, ...] | None:
    """The captions in a ``.txt`` member, one a line, or in JSON ``caption``, ``captions`` or ``text``.

    Returns:
      () if there are none where they should be; None for JSON that holds something else.
    """
    text = texts.decode(data, "surrogateescape")
    if not is_json:
        return as_captions([line for line in texts.lines(text) if line.strip()])
    try:
        value = jsonfile.loads(text)
    except ValueError:
        return None
    key = next((key for key in _CAPTION_KEYS if key in value), None) if isinstance(value, dict) else None
    return None if key is None else as_captions(value[key])


def is_json(data: bytes) -> bool:
    """Whether it can be parsed."""
    try:
        jsonfile.loads(data)
    except ValueError:
        return False
    return True
