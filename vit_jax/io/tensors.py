"""Files of named arrays, read leaf by leaf and written leaf by leaf: safetensors, NumPy's ``.npz``, PyTorch's files."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import pathlib
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from vit_jax.checks import suggest
from vit_jax.io import jsonfile, npz, pytorch
from vit_jax.types import UserError

log = logging.getLogger(__name__)

_CODES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": ml_dtypes.bfloat16,
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
DTYPES = {code: np.dtype(name) for code, name in _CODES.items()}
"""The dtypes that are read and written, by their name in safetensors."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A leaf that is read when it is needed: ``read()`` gives an array of ``shape`` and ``dtype``."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray) -> Tensor:
        """A leaf that is already in memory."""
        return cls(tuple(array.shape), np.dtype(array.dtype), lambda: array)


Tensors = Mapping[str, Tensor]
Reader = Callable[[pathlib.Path, contextlib.ExitStack], dict[str, Tensor]]


@contextlib.contextmanager
def open_tensors(path: pathlib.Path) -> Iterator[dict[str, Tensor]]:
    """Opens a file of named arrays; leaves are read one by one, while it is open.

    Args:
      path: ``.safetensors``, ``.npz`` (whose unnamed two-byte leaves are bfloat16), PyTorch's ``.pth``, ``.pt``,
        ``.bin``, ``.ckpt`` or ``.pth.tar`` (see :func:`.pytorch.open_pytorch`), or the ``.index.json`` of shards
        beside it. What has another name is known by its content.

    Yields:
      Name -> leaf, of a dtype in :data:`DTYPES` or :data:`.pytorch.NO_ARRAY`. Its ``read`` raises UserError where the
      data are damaged or no array.

    Raises:
      UserError: the file is missing, of another kind, damaged, dangerous, or takes a package that is not installed.
    """
    path = pathlib.Path(path)
    with contextlib.ExitStack() as stack:
        with _reading(path):
            _check_content(path)
            tensors = _reader(path)(path, stack)
        yield tensors


def _reader(path: pathlib.Path) -> Reader:
    """What reads a file, by its name or else by its content.

    Raises:
      UserError: nothing does.
    """
    if named := next((read for end, read in READERS.items() if path.name.endswith(end)), None):
        return named
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
        if any(name.endswith("data.pkl") for name in members):
            return _open_pth
        if members and all(name.endswith(".npy") for name in members):
            return _open_npz
    with open(path, "rb") as f:
        head = f.read(9)
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return _open_safetensors
    if head[:1] == b"\x80":
        return _open_pth
    if tarfile.is_tarfile(path):
        raise UserError(f"{path} is an archive; unpack it and name the file of weights that is in it.")
    raise UserError(f"{path} is of no kind that can be read here; allowed: {', '.join(READERS)}.")


def missing(path: pathlib.Path) -> str:
    """The sentence for a path that is not there, with the nearest names beside it."""
    try:
        there = os.listdir(path.parent)
    except (OSError, ValueError):
        there = []
    hint = suggest(path.name, there)
    return f"{str(path)!r} does not exist{hint if 'did you mean' in hint else '.'}"


@contextlib.contextmanager
def _reading(path: pathlib.Path, leaf: str = "") -> Iterator[None]:
    """Turns what libraries raise on damaged files into a sentence."""
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{leaf or path} does not fit into memory.") from None
    except Exception as e:  # OSError, ValueError, EOFError, zlib.error, BadZipFile, SafetensorError, RuntimeError ...
        what = f"{leaf} in {path}" if leaf else str(path)
        reason = (str(e) or type(e).__name__).splitlines()[0][:160]
        raise UserError(f"{what} cannot be read ({reason}); the file is damaged or cut short: get it again.") from None


def _check_content(path: pathlib.Path) -> None:
    """Refuses what is often stored under the name of weights: nothing, a pointer of Git LFS, a web page."""
    if not path.is_file():
        raise UserError(f"{str(path)!r} is no file; give one in it." if path.exists() else missing(path))
    check_head(path)


def check_head(path: pathlib.Path) -> None:
    """Refuses by how a file begins what cannot be weights, nor the beginning of them.

    Raises:
      UserError: it says what is there instead.
    """
    with open(path, "rb") as f:
        head = f.read(256)
    if not head:
        raise UserError(f"{path} is empty (0 bytes); get it again.")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the weights themselves; run 'git lfs pull' there.")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page (an error page saved under this name?), not weights; get it again.")


def check_download(path: pathlib.Path) -> None:
    """Refuses a file that is no weights, or only a part of them, as far as that shows without PyTorch.

    Raises:
      UserError: it says what is wrong.
    """
    check_head(path)
    with open(path, "rb") as f:
        head = f.read(8)
    if head[:4] == b"PK\x03\x04":
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is cut short: the end of the archive is missing.")
    elif path.name.endswith((".safetensors", ".npz")):
        with open_tensors(path):
            pass
    elif head[:1] != b"\x80":  # how PyTorch's files from before 1.6 begin
        raise UserError(f"{path} holds no weights, but {head!r} ...")


def _leaf(path: pathlib.Path, name: str, shape: Any, dtype: np.dtype, read: Callable[[], np.ndarray]) -> Tensor:
    def guarded() -> np.ndarray:
        with _reading(path, name):
            return read()

    return Tensor(tuple(shape), dtype, guarded)


def _open_safetensors(path: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    # read, not mapped: pages of a mapped file count as memory of the process once touched
    f = stack.enter_context(safetensors.safe_open(path, framework="np", backend="pread"))
    tensors = {}
    for name in f.keys():  # noqa: SIM118 (it is no mapping)
        leaf = f.get_slice(name)
        if (code := leaf.get_dtype()) not in DTYPES:
            raise UserError(f"{name} in {path} is of type {code}; allowed: {', '.join(DTYPES)}.")
        tensors[name] = _leaf(path, name, leaf.get_shape(), DTYPES[code], functools.partial(f.get_tensor, name))
    return tensors


def _open_shards(path: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    where = jsonfile.read(path, "; it is no index of shards").get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise UserError(f'{path} is no index of shards: it lacks a "weight_map" of names and files.')
    kind = path.name.removesuffix(".index.json").rpartition(".")[2]
    shards = collections.defaultdict(set)
    for name, shard in where.items():
        shards[shard].add(name)
    tensors: dict[str, Tensor] = {}
    for shard, wanted in sorted(shards.items()):
        with _reading(file := _beside(path, shard, f".{kind}")):
            _check_content(file)
            there = READERS[f".{kind}"](file, stack)
        if lost := sorted(wanted - there.keys()):
            raise UserError(f"{file} lacks {lost[0]}, which {path} says it holds; get both again.")
        if others := sorted(there.keys() - wanted):
            log.warning("%s: left out %d tensors that its index does not name (%s ...).", file, len(others), others[0])
        tensors |= {name: there[name] for name in sorted(wanted)}
    return tensors


def _beside(index: pathlib.Path, shard: str, suffix: str) -> pathlib.Path:
    """The path of a shard; one that leads out of the index's folder is refused.

    Only the hub's cache (``CACHE/models--org--name/snapshots/COMMIT/file``) is made of links, which stay in ``CACHE``.
    """
    folder = index.parent.absolute()
    root = folder.parents[2] if folder.parent.name == "snapshots" and len(folder.parents) > 2 else folder
    if not shard.endswith(suffix) or "/" in shard or "\\" in shard or "\0" in shard:
        raise UserError(f"{index} names the shard {shard!r}; only plain names of {suffix} files are allowed.")
    if not (folder / shard).resolve().is_relative_to(root.resolve()):
        raise UserError(f"the shard {shard!r} of {index} is a link out of its folder; put the file itself there.")
    return folder / shard


def _open_npz(path: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    return {name: _leaf(path, name, shape, dtype, read) for name, shape, dtype, read in npz.open_npz(path, stack)}


def _open_pth(path: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    del stack  # PyTorch unmaps the file with the last tensor
    return {name: Tensor(shape, dtype, read) for name, shape, dtype, read in pytorch.open_pytorch(path)}


READERS: dict[str, Reader] = {
    ".safetensors": _open_safetensors,
    ".safetensors.index.json": _open_shards,
    ".npz": _open_npz,
    ".pth": _open_pth,
    ".pt": _open_pth,
    ".bin": _open_pth,
    ".bin.index.json": _open_shards,
    ".ckpt": _open_pth,
    ".pth.tar": _open_pth,
}
"""The reader of each kind of file, by the end of its name."""


def write_safetensors(path: pathlib.Path, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, one leaf in memory at a time.

    The library wants all of them at once; the format is a length of eight bytes, a JSON header and the data, see
    https://github.com/huggingface/safetensors#format.

    Args:
      path: overwritten; write to a temporary name and rename.
      tensors: leaves of dtypes in :data:`DTYPES`.
      metadata: stored under ``__metadata__``.

    Raises:
      UserError: another dtype, or the disk is full.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # each leaf then lies aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        shape, dtype = tensors[name].shape, tensors[name].dtype
        if dtype not in codes:
            raise UserError(f"{name} is of type {dtype}; a safetensors file holds {', '.join(map(str, codes))}.")
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _writing(path), open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            f.write(_array(name, tensors).reshape(-1).view(np.uint8).data)


def write_npz(path: pathlib.Path, tensors: Tensors) -> None:
    """Writes an uncompressed ``.npz`` for ``numpy.load``, one leaf in memory at a time; equal input gives equal bytes.

    Args:
      path: overwritten; write to a temporary name and rename.
      tensors: leaves of NumPy's own dtypes: bfloat16 would come back as raw bytes.

    Raises:
      UserError: another dtype, or the disk is full.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values() or tensor.dtype == ml_dtypes.bfloat16:
            raise UserError(f"{name} is of type {tensor.dtype}, which NumPy cannot read back; write float32.")
    with _writing(path), zipfile.ZipFile(path, "w") as archive:
        for name in tensors:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as f:
                np.lib.format.write_array(f, _array(name, tensors), version=(1, 0), allow_pickle=False)


def _array(name: str, tensors: Tensors) -> np.ndarray:
    array, promised = np.asarray(tensors[name].read()), tensors[name]
    if (array.shape, array.dtype) != (promised.shape, promised.dtype):
        raise ValueError(f"{name} was to be {promised.dtype}{promised.shape} and is {array.dtype}{array.shape}")
    return array


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}.") from e
