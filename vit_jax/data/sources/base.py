"""What a data source is: an index of examples, random-access and stateless, plus the pieces all sources share."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NotRequired, Protocol, TypedDict, TypeVar, runtime_checkable

import numpy as np

from vit_jax.checks import Range
from vit_jax.config import suggest
from vit_jax.data.classes import spelled
from vit_jax.data.permute import hash64, make_key
from vit_jax.data.text import TextCodec
from vit_jax.io import files
from vit_jax.io import text as texts
from vit_jax.types import UserError

HOLDOUT = Range(0, 2**40)
"""What may be held out: a fraction or a number of examples."""
MAX_CLASSES = 2**20
"""Numeric labels from this on are mistakes: a head over more classes would not fit anywhere."""

MAX_IMAGE_BYTES = 2**29
"""A larger file is no image that could be decoded: 134 megapixels need as much without any compression."""


class Unreadable(UserError):
    """One example cannot be read: the only mistake that ``on_error="skip"`` passes over (no full stop)."""


class Record(TypedDict):
    """One example as stored: ``image`` is an encoded file or uint8[H, W, C]; ``name`` serves error messages.

    ``captions`` are as found, undecodable bytes as surrogate escapes; :func:`valid_captions` judges them.
    """

    image: bytes | np.ndarray
    label: int
    name: str
    captions: NotRequired[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Info:
    """What is known before reading an image.

    Attributes:
      class_names: none where images have captions only; then every label is 0.
      num_examples: as it says.
      notes: sentences on what was left out, to be shown to the user.
      captions: the most that any image has; 0 means that not all of them have one.
      encoder: turns captions into tokens; None means that they are not wanted.
      digest: of which examples there are, in which order and with which labels, as far as that is known without reading
        them (see :func:`digest`); empty where it is not. A resumed run compares it.
    """

    class_names: tuple[str, ...]
    num_examples: int
    notes: tuple[str, ...] = ()
    captions: int = 0
    encoder: TextCodec | None = None
    digest: str = dataclasses.field(default="", compare=False)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def read_image(path: str) -> bytes:
    """The encoded image in a file.

    Raises:
      Unreadable: it cannot be read, or is no regular file.
    """
    try:
        return files.read(path, MAX_IMAGE_BYTES)
    except OSError as e:
        raise Unreadable(f"the image {path} cannot be read ({e.strerror})") from None


@runtime_checkable
class Source(Protocol):
    """Cheap to open, thread-safe, picklable; holds an index and never images."""

    info: Info

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Record: ...


class Absent:
    """Data that is not here: what is known of it, and not one example."""

    def __init__(self, info: Info):
        self.info = info

    def __len__(self) -> int:
        return self.info.num_examples

    def __getitem__(self, i: int) -> Record:
        raise UserError("the training data is not here, only what a checkpoint tells of it; give data.path.")


def digest(*parts: str | np.ndarray | Strings | Sequence[str]) -> str:
    """16 hexadecimal digits that depend on every part and on the parts' order; a gigabyte takes about a second."""
    whole = hashlib.blake2b(digest_size=8)
    for part in parts:
        if not isinstance(part, np.ndarray | Strings):
            part = Strings.pack([part] if isinstance(part, str) else part)
        for array in (part.blob, part.ends) if isinstance(part, Strings) else (part,):
            whole.update(f"{array.dtype.str}{array.shape}".encode())
            whole.update(np.ascontiguousarray(array).view(np.uint8).data)
    return whole.hexdigest()


S = TypeVar("S", bound=Source)


def noted(source: S, notes: tuple[str, ...]) -> S:
    """``source``, with more notes on what was left out."""
    source.info = dataclasses.replace(source.info, notes=(*source.info.notes, *notes))
    return source


class Wrapped:
    """A source made of another one, of which its ``info`` differs in some fields."""

    def __init__(self, source: Source, **info: Any):
        self.source, self.info = source, dataclasses.replace(source.info, **info)

    def __len__(self) -> int:
        return len(self.source)


class Subset(Wrapped):
    """The examples ``indices`` (in that order) of a source."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.indices = np.asarray(indices, np.uint32)
        taken = digest(source.info.digest, self.indices)
        super().__init__(source, num_examples=len(indices), digest=taken)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Record:
        return self.source[int(self.indices[i])]


class Relabelled(Wrapped):
    """A source whose labels are looked up in ``table``: int[old classes] -> label among ``class_names``."""

    def __init__(self, source: Source, table: np.ndarray, class_names: tuple[str, ...]):
        self.table = np.asarray(table, np.int32)
        super().__init__(source, class_names=class_names, digest=digest(source.info.digest, self.table))

    def __getitem__(self, i: int) -> Record:
        record = self.source[i]
        return {**record, "label": int(self.table[record["label"]])}


def known_labels(source: Source) -> np.ndarray | None:
    """int[N], the labels of a source where they are known without reading its examples."""
    if not isinstance(source, Wrapped):
        return getattr(source, "labels", None)
    found = known_labels(source.source)
    if found is not None and isinstance(source, Subset):
        return found[source.indices]
    return source.table[found] if found is not None and isinstance(source, Relabelled) else found


def align(source: Source, class_names: tuple[str, ...], what: str) -> Source:
    """``source`` with its labels counted in ``class_names``, matched by name; without any, all labels are 0.

    Raises:
      UserError: a class of ``source`` is not among them, or it has no classes though they are wanted.
    """
    if source.info.class_names == class_names:
        return source
    if not class_names:
        return Relabelled(source, np.zeros(source.info.num_classes), ())
    if not source.info.class_names:
        raise UserError(f"{what} has captions and no classes, but the training data has classes.")
    position = {name: i for i, name in enumerate(spelled(class_names))}
    own = spelled(source.info.class_names)
    for name in own:
        if name not in position:
            raise UserError(f"{what} holds class {name!r}, unknown in training{suggest(name, class_names)}")
    return Relabelled(source, np.array([position[name] for name in own]), class_names)


def as_captions(value: Any) -> tuple[str, ...]:
    """Captions from what a file holds: a text or a list of texts, stripped; () for anything else."""
    items = [value] if isinstance(value, str | bytes) else value
    if not isinstance(items, list | tuple | np.ndarray) or not all(isinstance(item, str | bytes) for item in items):
        return ()
    found = (texts.decode(item, "surrogateescape") if isinstance(item, bytes) else item for item in items)
    return tuple(text.strip() for text in found)


def valid_captions(record: Record) -> tuple[str, ...]:
    """The captions of an example, at least one and none of them empty.

    Raises:
      Unreadable: there is none, one is empty or one is no text.
    """
    captions = record.get("captions", ())
    if not captions:
        raise Unreadable(f"the example {record['name']} has no caption")
    for caption in captions:
        if not caption.strip():
            raise Unreadable(f"a caption of {record['name']} is empty")
        if not caption.isprintable() and any(0xD800 <= ord(c) < 0xE000 for c in caption):
            raise Unreadable(f"a caption of {record['name']} is not valid UTF-8: {caption[:40]!a}")
    return captions


class NothingHeldOut(UserError):
    """Nothing is left to validate on."""


def split_mask(labels: np.ndarray, holdout: float | int, seed: int, what: str) -> np.ndarray:
    """Which examples are held out: stratified, exact in number, a pure function of its arguments.

    Each class gives its share (largest remainders first) and keeps at least one example for training.

    Args:
      labels: int[N], non-negative; all equal means no stratification.
      holdout: a fraction below 1, or else the number of examples to hold out.
      seed: names the split.
      what: the data, for the error sentence.

    Returns:
      bool[N], True where held out.

    Raises:
      UserError: nothing or everything would be held out.
    """
    HOLDOUT.check("holdout", holdout)
    n = len(labels)
    count = round(holdout * n) if holdout < 1 else int(holdout)
    sizes = np.bincount(labels, minlength=1)
    room = np.maximum(sizes - 1, 0)
    if holdout > 1 and holdout != count:
        raise UserError(f"holdout={holdout} is neither a fraction below 1 nor a whole number of examples.")
    if count == 0:
        raise NothingHeldOut(f"holdout={holdout} leaves nothing to validate on in {what} ({n} examples); raise it.")
    if count > room.sum():
        raise UserError(
            f"holdout={holdout} leaves nothing to train on in some of the {np.count_nonzero(sizes)} classes of {what} "
            f"({n} examples); hold out at most {room.sum()}."
        )
    share = count * sizes / n
    quota = np.minimum(np.floor(share).astype(np.int64), room)
    by_remainder = np.argsort(quota - share, kind="stable")
    while (missing := count - quota.sum()) > 0:  # a second lap only where small classes were full
        quota[by_remainder[quota[by_remainder] < room[by_remainder]][:missing]] += 1
    order = np.lexsort((hash64(np.arange(n, dtype=np.uint64) ^ np.uint64(make_key(seed))), labels))
    rank = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held = np.zeros(n, bool)
    held[order] = rank < np.repeat(quota, sizes)
    return held


def take_split(source: Source, labels: np.ndarray, split: str, holdout: float | int, seed: int, what: str) -> Source:
    """The ``train`` or ``val`` side of a seeded split; with ``holdout=0`` training has everything."""
    if holdout == 0 and split == "train":
        return source
    held = split_mask(labels, holdout, seed, what)
    if split == "train":
        return Subset(source, np.flatnonzero(~held))
    part = Subset(source, np.flatnonzero(held))
    note = f"of the {len(held):,} examples of {what}, {len(part):,} are held out (holdout={holdout})"
    return noted(part, (f"{note}; they alone are scored.",))


class Strings(Sequence[str]):
    """Immutable list of strings in two arrays: a few bytes an entry instead of a Python object."""

    def __init__(self, blob: np.ndarray, ends: np.ndarray):
        self.blob, self.ends = blob, ends

    @classmethod
    def pack(cls, items: Sequence[str]) -> Strings:
        encoded = [texts.encode(s) for s in items]
        ends = np.cumsum([len(s) for s in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:  # type: ignore[override]
        if not 0 <= i < len(self.ends):
            raise IndexError(i)
        start = self.ends[i - 1] if i else 0
        return self.blob[start : self.ends[i]].tobytes().decode("utf-8", "surrogateescape")

    @classmethod
    def concatenate(cls, parts: Sequence[Strings]) -> Strings:
        shifts = np.cumsum([0, *(len(p.blob) for p in parts)])
        ends = [p.ends + shift for p, shift in zip(parts, shifts, strict=False)]
        empty = np.zeros(0, np.int64)
        return cls(np.concatenate([empty.astype(np.uint8), *(p.blob for p in parts)]), np.concatenate([empty, *ends]))

    def take(self, order: np.ndarray) -> Strings:
        return Strings.pack([self[int(i)] for i in order])
