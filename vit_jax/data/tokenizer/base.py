"""What a tokenizer is, and how one is kept: a small dictionary that says everything, with a fingerprint."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from vit_jax.config import lookup
from vit_jax.data.tokenizer.clean import CLEAN
from vit_jax.io import files
from vit_jax.types import UserError

MAX_BYTES = 2**26
"""A vocabulary is no larger than 64 MiB, compressed or not: 256,000 tokens take half of that."""

State = dict[str, Any]


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back. Immutable, thread-safe, picklable; equal if their fingerprints are.

    Attributes:
      vocab_size: ids are in ``range(vocab_size)``; so many rows has an embedding table.
      pad_id: fills a row up behind its end token. It may be ``end_id`` or a content id (as in CLIP): what follows the
        first ``end_id`` is padding.
      end_id: ends a text; no text produces it.
      start_id: begins a text, or None where the convention has no such token.
      fingerprint: 32 hexadecimal digits; equal for equal mappings, whatever file they were read from.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def end_id(self) -> int: ...

    @property
    def start_id(self) -> int | None: ...

    @property
    def fingerprint(self) -> str: ...

    def ids(self, text: str) -> list[int]:
        """The content of ``text``, without start and end; never fails on a string."""

    def text(self, ids: Sequence[int]) -> str:
        """The inverse of :meth:`ids`: stops at ``end_id``, ignores start and padding."""

    def state(self) -> State:
        """JSON-able and complete: :func:`~vit_jax.data.tokenizer.from_state` restores an equal tokenizer."""


class Stateful:
    """A tokenizer known by its :meth:`state`: equality, hash, pickling and fingerprint follow from it."""

    def state(self) -> State:
        raise NotImplementedError

    @functools.cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.state())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stateful) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        from vit_jax.data.tokenizer import from_state

        return from_state, (self.state(),)


class FromFile(Stateful):
    """A tokenizer made of a file's bytes, three special ids and a way to clean; a subclass sets ``vocab_size``.

    Args:
      data: the file.
      pad_id, end_id, start_id: ids of the tokens that fill up, end and start a text.
      clean: a row of :data:`~vit_jax.data.tokenizer.clean.CLEAN`, what is done to a text first.

    Raises:
      UserError: not such a file, or a special id that is not in it.
    """

    kind: ClassVar[str]
    vocab_size: int

    def __init__(self, data: bytes, *, pad_id: int, end_id: int, start_id: int | None, clean: str):
        self.data, self.pad_id, self.end_id, self.start_id, self.clean = data, pad_id, end_id, start_id, clean
        self._clean = lookup(CLEAN, clean, "clean")
        self._load()
        for name in ("pad_id", "end_id", "start_id"):
            value = getattr(self, name)
            if (name, value) != ("start_id", None) and not 0 <= value < self.vocab_size:
                raise UserError(
                    f"{name}={value} is not among the {self.vocab_size:,} tokens; the tokenizer is damaged."
                )

    def _load(self) -> None:
        """Makes ``data`` what encodes; may replace it by a canonical form."""
        raise NotImplementedError

    def state(self) -> State:
        specials = {"pad_id": self.pad_id, "end_id": self.end_id, "start_id": self.start_id}
        return {"kind": self.kind, "data": pack(self.data), **specials, "clean": self.clean}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Raises UserError where a field is missing or of the wrong type."""
        return cls(
            unpack(field(state, "data", str)),
            pad_id=field(state, "pad_id", int),
            end_id=field(state, "end_id", int),
            start_id=field(state, "start_id", (int, type(None))),
            clean=field(state, "clean", str),
        )


def fingerprint(state: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of a state with its data uncompressed: compressors differ, vocabularies do not.

    Raises:
      UserError: the data are damaged.
    """
    plain = dict(state)
    if "data" in plain:
        plain["data"] = hashlib.sha256(unpack(plain["data"])).hexdigest()
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


def content(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """``ids`` without start, end, what follows the end, and padding at the end of the row."""
    ids = [int(i) for i in ids]
    if tokenizer.end_id in ids:
        ids = ids[: ids.index(tokenizer.end_id)]
    else:
        while ids and ids[-1] == tokenizer.pad_id:
            ids.pop()
    return [i for i in ids if i != tokenizer.start_id]


def pack(data: bytes) -> str:
    """Compressed, as text."""
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def unpack(text: Any) -> bytes:
    """The inverse of :func:`pack`; never makes more than :data:`MAX_BYTES`.

    Raises:
      UserError: damaged, or too large.
    """
    try:
        return inflate(base64.b64decode(text, validate=True), zlib.MAX_WBITS)
    except (zlib.error, ValueError, TypeError) as e:
        raise UserError(
            f"the vocabulary in a tokenizer's state is damaged ({e}); take the state from a sound copy."
        ) from e


def inflate(data: bytes, wbits: int) -> bytes:
    """Decompresses all of ``data``; ``wbits`` as in :func:`zlib.decompressobj`. Raises ValueError or zlib.error."""
    stream = zlib.decompressobj(wbits)
    out = stream.decompress(data, MAX_BYTES)
    if stream.unconsumed_tail:
        raise ValueError(f"more than {MAX_BYTES:,} bytes when decompressed")
    if not stream.eof or stream.unused_data:
        raise ValueError("truncated, or several files in one")
    return out


def read(path: str | pathlib.Path) -> bytes:
    """A vocabulary file, decompressed where its content is gzip.

    Raises:
      UserError: missing, unreadable, damaged, or larger than :data:`MAX_BYTES`.
    """
    path = pathlib.Path(path).expanduser()
    try:
        data = files.read(path, MAX_BYTES)
        return inflate(data, 16 + zlib.MAX_WBITS) if data[:2] == b"\x1f\x8b" else data
    except OSError as e:
        raise UserError(f"the vocabulary {str(path)!r} cannot be read ({e.strerror}); name an existing file.") from e
    except (ValueError, zlib.error) as e:
        raise UserError(f"the vocabulary {str(path)!r} is no vocabulary ({e}).") from e


def well_formed(text: str) -> str:
    """``text`` with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def options(rest: str, allowed: Sequence[str]) -> tuple[str, dict[str, str]]:
    """``"PATH?end=</s>&pad=<pad>"`` -> the path and its options.

    Raises:
      UsageError: an option that is not ``allowed``.
    """
    path, _, query = rest.partition("?")
    given = dict(item.partition("=")[::2] for item in query.split("&")) if query else {}
    for name in given:
        lookup(dict.fromkeys(allowed), name, "tokenizer option")
    return path, given


def field(state: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """``state[name]``, of type ``kind``, or a UserError."""
    value = state.get(name)
    if name not in state or not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"the state of a tokenizer has {name}={value!r:.40}; it is damaged or of another version.")
    return value
