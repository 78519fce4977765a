"""Object stores and other file systems that are named by an address: ``gs://``, ``s3://``, whatever fsspec knows.

What may pass is tried again (:mod:`.retry`). Every error is an :class:`OSError` whose ``strerror`` says the reason in
the words of a sentence, as those of the system do, so that whoever reads local files reads these the same way.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import errno
import fnmatch
import functools
import glob as globbing
import io
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from vit_jax.io.retry import passing, retried
from vit_jax.types import UserError

T = TypeVar("T")
BLOCK = 2**14
"""Bytes that are asked for at least, where a file is read piece by piece."""
FLAT = ("gs", "gcs", "s3", "s3a", "az", "abfs", "abfss", "oci", "oss", "memory")
"""Schemes of stores in which folders are a part of names, and a file comes to be as a whole."""
WHOLE = ("gs", "gcs", "s3", "s3a", "az", "abfs", "abfss")
"""Schemes whose stores list all that is below a folder at once; of others fsspec passes over what it cannot list."""
LOGIN = {
    "gs": "run 'gcloud auth application-default login', or set GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "run 'aws configure', or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
"""How one comes to have access, by scheme."""
_VERSIONS = ("generation", "etag", "ETag", "md5Hash", "LastModified", "Last-Modified", "updated", "created", "mtime")
"""What stores call that by which a change is seen, the surest first."""
_ADDRESS = re.compile(r"([A-Za-z][\w+.-]*://)([^\s'\"]*)")


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether it is no path of this machine."""
    return bool(re.match(r"[A-Za-z][\w+.-]*://", os.fspath(path)))


def public(text: str) -> str:
    """``text`` with every address in it stripped of what may give access: user and password, query and fragment.

    Example:
      >>> public("https://me:secret@host/vit.npz?token=x")
      'https://host/vit.npz'
    """
    return _ADDRESS.sub(lambda found: found[1] + re.split("[?#]", anonymous(found[2]))[0], text)


def anonymous(address: str) -> str:
    """What follows ``://`` without user and password, even one with letters that ought to be quoted."""
    host = re.split("[/?#]", address)[0]
    if "@" in host:
        return address[host.rindex("@") + 1 :]
    _, colon, port = host.partition(":")
    return address.rpartition("@")[2] if colon and not port.isdigit() and host[:1] != "[" else address


def check(text: str, *, query: bool = False) -> None:
    """Raises :class:`UserError` where an address in ``text`` holds a password, or a query unless that is allowed: it
    would be written to logs and configurations.
    """
    for scheme, rest in _ADDRESS.findall(text):
        if anonymous(rest) != rest or (not query and re.search("[?#]", rest)):
            raise UserError(
                f"{public(scheme + rest)!r} holds what may give access, which would be written down; give the address "
                f"alone, and access as {scheme.removesuffix('://')} has it (see docs/remote.md)."
            )


@dataclasses.dataclass(frozen=True)
class Entry:
    """One name in a folder; it answers as :class:`os.DirEntry` does.

    Attributes:
      name: without the folder's.
      size: bytes; 0 of a folder.
      folder: whether it is one.
      version: another text for another content, as far as the store tells; "" where it does not.
    """

    name: str
    size: int = 0
    folder: bool = False
    version: str = ""

    def is_dir(self) -> bool:
        return self.folder

    def is_file(self) -> bool:
        return not self.folder

    def is_symlink(self) -> bool:
        return False


def file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the name that it gives to what lies there.

    Raises:
      UserError: its package is missing, the scheme unknown, or it is not encrypted.
    """
    from vit_jax.io.remote import loopback  # which builds on this module

    scheme, _, rest = address.partition("://")
    if scheme == "http" and not loopback(address):
        raise UserError(f"{public(address)!r} is not encrypted; give an address of https://.")
    files = _file_system(scheme, rest.partition("/")[0] if scheme.startswith("http") else "", os.getpid())
    return files, files._strip_protocol(address)


@functools.lru_cache(maxsize=64)
def _file_system(scheme: str, host: str, process: int) -> Any:
    """One for all addresses of a scheme: it keeps connections. It keeps no listings, which others change."""
    del process  # connections are those of the process that made them
    from vit_jax.io.extras import needed  # which reads files itself
    from vit_jax.io.remote import http

    with needed(f"reading and writing {scheme}://", "remote"):
        import fsspec

        for name in ("gcsfs", "s3fs", "aiobotocore"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # they log with tracebacks what they also raise
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if scheme.startswith("http"):
            options |= http(f"{scheme}://{host}")
        if scheme in ("s3", "s3a"):  # trying again is ours, and counted
            options |= {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 1}}}
        try:
            kind = fsspec.get_filesystem_class(scheme)
        except ValueError:
            known = "gs, s3, https, memory, file"
            raise UserError(f"{scheme}:// is no kind of address; known are {known} and what fsspec has.") from None
        files = kind(**options)
    files.retries = 1
    if once := getattr(getattr(kind, "_request", None), "__wrapped__", None):
        files._request = functools.partial(once, files)  # gcsfs would try six times, and tell nobody
    return files


def _asked(address: str, call: Callable[[Any, str], T]) -> T:
    """What ``call`` returns of the file system and the name of an address.

    Raises:
      OSError: it fails; ``strerror`` says why, and the kind is that of the system for what is not there, not allowed or
        there already.
    """
    files, name = file_system(address)
    try:
        return retried(lambda: call(files, name), address)
    except UserError:
        raise
    except Exception as e:  # what the backends raise has no common type
        raise _told(e, address) from e


def _told(error: Exception, address: str) -> OSError:
    shown, text = public(address), public((str(error) or type(error).__name__).splitlines()[0])[:200]
    scheme = address.partition("://")[0]
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        missing = "no such bucket" if "bucket" in text.lower() and "exist" in text.lower() else "it does not exist"
        return FileNotFoundError(errno.ENOENT, missing, shown)
    if isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, "it exists", shown)
    code = getattr(error, "code", None) or getattr(error, "status", None)
    lacking = "Credentials" in kind or "Credentials" in text or code == 401 or "Anonymous caller" in text
    login = LOGIN.get({"gcs": "gs", "s3a": "s3"}.get(scheme, scheme), "log in")
    if lacking:
        return PermissionError(errno.EACCES, f"there are no credentials that are accepted ({text}): {login}", shown)
    if isinstance(error, PermissionError) or code == 403 or text.startswith("Forbidden"):
        return PermissionError(errno.EACCES, f"access is refused ({text}): see who may, or {login}", shown)
    if isinstance(error, OSError) and error.errno is not None and error.strerror and not passing(error):
        return OSError(error.errno, public(error.strerror), shown)
    return OSError(
        errno.EIO, f"{text}; check the address and the network, and try again" if passing(error) else text, shown
    )


def info(address: str) -> Entry:
    """What lies at an address: a file, or a folder, which on an object store is there where a file is below it.

    Raises:
      OSError: nothing does (:class:`FileNotFoundError`), or it cannot be told.
    """
    return _entry(_asked(address, lambda files, name: files.info(name)), address)


def is_dir(address: str) -> bool:
    """Whether a folder lies there; what the store refuses to tell is raised as an :class:`OSError`."""
    try:
        return info(address).folder
    except FileNotFoundError:
        return False


def exists(address: str) -> bool:
    """Whether a file or a folder lies there, see :func:`is_dir`."""
    try:
        return bool(info(address))
    except FileNotFoundError:
        return False


_known: contextvars.ContextVar[Mapping[str, list[Entry]] | None] = contextvars.ContextVar("_known", default=None)


@contextlib.contextmanager
def listed(folder: str) -> Iterator[None]:
    """Within it :func:`entries` of what is below ``folder`` are those of one listing: a request for each thousand files
    instead of one for each folder. Of a path of this machine nothing is listed.
    """
    found: dict[str, list[Entry]] = {}
    for path, entry in tree(folder).items() if is_address(folder) else ():
        address = f"{folder.rstrip('/')}/{path}"
        for above in parents(address):
            new = above not in found
            found.setdefault(above, []).append(entry)
            if not new or above == folder.rstrip("/"):
                break
            entry = Entry(above.rpartition("/")[2], folder=True)
    token = _known.set({**(_known.get() or {}), **found})
    try:
        yield
    finally:
        _known.reset(token)


def entries(folder: str) -> list[Entry]:
    """What is in a folder, in no order.

    Raises:
      OSError: it is not there, or cannot be listed.
    """
    if (known := (_known.get() or {}).get(folder.rstrip("/"))) is not None:
        return known
    found, own = _asked(folder, lambda files, name: (files.ls(name, detail=True), name))
    return [_entry(one, one["name"]) for one in found if one["name"].rstrip("/") != own.rstrip("/")]


def tree(folder: str) -> dict[str, Entry]:
    """Every file below a folder, by its path from there; nothing where there is no such folder.

    Raises:
      OSError: it cannot be listed.
      UserError: the name of a file would lead out of the folder, were it one of this machine.
    """
    try:
        found = _found(folder)
    except FileNotFoundError:
        return {}
    own = file_system(folder)[1]
    below = {}
    for name, one in found.items():
        if (path := name.removeprefix(own).lstrip("/")) and not name.endswith("/"):
            below[path] = _entry(one, name)
            if any(part in ("", ".", "..") for part in path.split("/")) or "\\" in path or "\0" in path:
                raise UserError(f"{public(folder)} holds {path!r}, which is no path below it; remove that.")
    return below


def _found(folder: str) -> dict[str, Mapping[str, Any]]:
    """What the store says of every file below a folder, by its name there; no error is passed over on the way."""
    if folder.partition("://")[0] in WHOLE:
        return _asked(folder, lambda files, name: files.find(name, detail=True))
    waiting, found = [file_system(folder)[1]], {}
    while waiting:
        at = waiting.pop()
        for one in _asked(folder, functools.partial(_ls, at)):
            if one["name"].rstrip("/") != at.rstrip("/"):
                if one.get("type") == "directory":
                    waiting.append(one["name"])
                else:
                    found[one["name"]] = one
    return found


def _ls(at: str, files: Any, _: str) -> list[Mapping[str, Any]]:
    return files.ls(at, detail=True)


def _entry(found: Mapping[str, Any], name: str) -> Entry:
    version = next((str(found[key]) for key in _VERSIONS if found.get(key)), "")
    folder = found.get("type") == "directory"
    name = name.rstrip("/").rpartition("/")[2]
    return Entry(name, folder=True) if folder else Entry(name, found.get("size") or 0, version=version)


def glob(pattern: str) -> list[str]:
    """The addresses that a pattern means, sorted; ``*``, ``?`` and ``[`` match within a name, as on this machine.

    Raises:
      OSError: a folder cannot be listed.
    """
    scheme, _, rest = pattern.partition("://")
    parts = rest.split("/")
    first = next((i for i, part in enumerate(parts) if globbing.has_magic(part)), len(parts))
    found = [f"{scheme}://{'/'.join(parts[:first])}"]
    for i, part in enumerate(parts[first:], first + 1):
        inside = ((folder, entry) for folder in found for entry in _entries(folder))
        found = [
            f"{folder}/{entry.name}"
            for folder, entry in inside
            if fnmatch.fnmatchcase(entry.name, part) and (entry.folder or i == len(parts)) and entry.name[:1] != "."
        ]
    return sorted(found)


def _entries(folder: str) -> list[Entry]:
    """:func:`entries`, none where there is no such folder."""
    with contextlib.suppress(FileNotFoundError):
        return entries(folder)
    return []


def read(address: str, limit: int | None = None) -> bytes:
    """The content of a file.

    Raises:
      OSError: it cannot be read, or has more than ``limit`` bytes.
    """
    alone = {"max_concurrency": 1} if address.startswith("s3") else {}  # else it asks for the size first
    data = _asked(address, lambda files, name: files.cat_file(name, **alone))
    if limit is not None and len(data) > limit:
        raise OSError(errno.EFBIG, f"more than {limit:,} bytes", public(address))
    return data


def ranges(address: str, places: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes at each (offset, size), fewer where the file ends before.

    Raises:
      OSError: they cannot be read.
    """
    return [_range(address, offset, size) for offset, size in places]


def _range(address: str, offset: int, size: int) -> bytes:
    if size <= 0:
        return b""
    return _asked(address, lambda files, name: files.cat_file(name, start=offset, end=offset + size))


def open_read(address: str, block: int = BLOCK) -> BinaryIO:
    """A file to read from anywhere in; it asks for ranges of ``block`` bytes or more, as they are wanted, with 0 for
    those that are wanted alone.

    Raises:
      OSError: it is not there or is a folder; also when it is read.
    """
    found = info(address)
    if found.folder:
        raise IsADirectoryError(errno.EISDIR, "Is a directory", public(address))
    ranges: Any = _Ranges(address, found.size)
    return io.BufferedReader(ranges, block) if block else ranges


class _Ranges(io.RawIOBase):
    """Bytes of a file that are asked for where they are wanted."""

    def __init__(self, address: str, size: int) -> None:
        self._address, self._size, self._at = address, size, 0

    def readable(self) -> bool:
        return True

    seekable = readable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = _range(self._address, self._at, min(len(buffer), self._size - self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def write(address: str, data: bytes, *, new: bool = False) -> None:
    """Writes a file: all of it or nothing.

    Args:
      address: where.
      data: its content.
      new: whether it must not be there yet; where the store supports it, nobody can come in between.

    Raises:
      OSError: it cannot be written; :class:`FileExistsError` where it is there and ``new``.
    """
    if new:
        _asked(address, lambda files, name: _beneath(files, name).pipe_file(name, data, mode="create"))
    else:
        _asked(address, lambda files, name: _put(files, name, lambda place: files.pipe_file(place, data)))


def upload(path: Path, address: str) -> None:
    """Writes a file of this machine there: all of it or nothing.

    Raises:
      OSError: it cannot be read or written.
    """
    local = os.fspath(path)
    _asked(address, lambda files, name: _put(files, name, lambda place: files.put_file(local, place)))


def _put(files: Any, name: str, write: Callable[[str], Any]) -> None:
    """Objects come to be as a whole; where files grow, one is written beside the place and moved there."""
    if not set(FLAT).isdisjoint([files.protocol] if isinstance(files.protocol, str) else files.protocol):
        write(name)
        return
    folder, _, last = _beneath(files, name)._strip_protocol(name).rpartition("/")
    new = f"{folder}/.unfinished-{uuid.uuid4().hex}"
    try:
        write(new)
        files.mv(new, f"{folder}/{last}")
    except BaseException:
        with contextlib.suppress(Exception):
            files.rm_file(new)
        raise


def _beneath(files: Any, name: str) -> Any:
    """``files``, in which the folder of ``name`` is there; on an object store it need not, and a bucket is not made."""
    if set(FLAT).isdisjoint([files.protocol] if isinstance(files.protocol, str) else files.protocol):
        files.makedirs(files._parent(name), exist_ok=True)
    return files


def download(address: str, path: Path) -> None:
    """Writes what lies there to a file of this machine; raises :class:`OSError` where it cannot."""
    _asked(address, lambda files, name: files.get_file(name, os.fspath(path)))


def move(address: str, new: str) -> None:
    """Gives a file another address of the same store.

    Raises:
      OSError: it cannot be moved.
    """

    def call(files: Any, name: str) -> None:
        target = files._strip_protocol(new)
        _beneath(files, target).mv(name, target)

    _asked(address, call)


def remove(addresses: Sequence[str]) -> None:
    """Removes files; one that is not there is no mistake.

    Raises:
      OSError: one cannot be removed.
    """
    for address in addresses:
        with contextlib.suppress(FileNotFoundError):
            _asked(address, lambda files, name: files.rm_file(name))


def beside(file: str, path: str) -> str:
    """The address of what a file at an address calls ``path``, as seen from its folder.

    Raises:
      UserError: it leads out of the bucket, or to this machine.
    """
    scheme, _, rest = file.partition("://")
    parts = rest.split("/")[:-1]
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
        if not parts:
            break
    if path.startswith(("/", "~")) or parts[:1] != rest.split("/")[:1]:
        raise UserError(f"{public(file)} names {path[:80]!r}, which is not below {scheme}://{rest.partition('/')[0]}.")
    return f"{scheme}://{'/'.join(parts)}"


def parents(address: str) -> Iterator[str]:
    """The folders that an address lies in, the nearest first, down to the bucket."""
    scheme, _, rest = address.rstrip("/").partition("://")
    while "/" in rest:
        rest = rest.rpartition("/")[0]
        yield f"{scheme}://{rest}"
