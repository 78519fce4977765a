"""Folders at an address, as folders of this machine: a run is written here and kept there.

A run takes what an object store lacks: appending, renaming, locks that end with their process, a storage format that
writes many files. So it has a *mirror* in the cache (:mod:`.cache`), and all that knows of addresses is when files go
up and come down:

- A checkpoint, a folder whose name is a number, is there once its :data:`MARK` is, which is sent last and removed
  first. Its large items (arrays) come once they are read.
- Of everything else the files at the top come when the mirror is opened, and what changes here goes there.
- Whoever trains has the place alone (:mod:`.lease`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator

from vit_jax.io import atomic, cache, jsonfile, store
from vit_jax.io.lease import Lease, Taken, owner
from vit_jax.types import UserError

MARK = "_CHECKPOINT_METADATA"
"""The file without which a checkpoint is not complete; its storage writes one, so that copies made by hand count."""
LAZY = "manifest.ocdbt"
"""What a folder holds that comes once it is read."""
LOCK = "lock"
"""The file of whoever trains there, see :mod:`.lease`."""
LOGS = 60.0
"""Seconds after which what changed of the logs is sent again: a store cannot append, so each is sent as a whole."""
LOST = 2
"""Checkpoints in a row that a store may fail to take, after all the tries of :mod:`.retry`, before a run ends."""
AT_A_TIME = 16
"""Files that are on their way at the same time."""
SMALL = 2**26
"""Bytes of a file that is read before it is sent: it may grow meanwhile."""
FOLDER = "checkpoints"
_WHOLE = re.compile(rf"((?:{FOLDER}/)?\d+)/(.+)", re.DOTALL)

log = logging.getLogger(__name__)
_mirrors: dict[pathlib.Path, Mirror] = {}


def local(place: str | os.PathLike[str], *, use: str = "read", pull: bool = True) -> pathlib.Path:
    """The folder of this machine for a place: a path as it is, for an address its mirror.

    Args:
      place: a path, or the address of a folder.
      use: mirrors for different uses are different folders: what is trained is not pulled away from under the run.
      pull: whether what is there is fetched now.

    Raises:
      UserError: the address cannot be read, or holds a password or a query.
    """
    if not store.is_address(place):
        return pathlib.Path(place)
    address = os.fspath(place).rstrip("/")
    store.check(address)
    store.file_system(address)  # a missing package or an unknown scheme is said at once
    name = address.rpartition("/")[2] or "run"
    folder = cache.folder("runs", hashlib.sha256(address.encode()).hexdigest()[:32], use, name[:99]).absolute()
    mirror = _mirrors.setdefault(folder, Mirror(address, folder))
    if pull:
        mirror.pull()
    return folder


def of(path: pathlib.Path) -> Mirror | None:
    """The mirror that a path is in, None for another path."""
    return next((_mirrors[above] for above in (path, *path.parents) if above in _mirrors), None)


def shown(text: str) -> str:
    """``text`` in which the folders of mirrors are called by their addresses."""
    for folder, mirror in _mirrors.items():
        text = text.replace(str(folder), mirror.address)
    return text


def arrive(path: pathlib.Path) -> None:
    """Sees to it that what is in a folder of a mirror is here.

    Raises:
      OSError: it cannot be fetched.
    """
    if mirror := of(path):
        mirror.fetch(path)


def send(folder: pathlib.Path) -> None:
    """Sends what is new in a folder of a mirror; of another folder nothing.

    Raises:
      UserError: it cannot be sent.
    """
    if mirror := of(folder):
        mirror.push(folder)


def moved(old: pathlib.Path, new: pathlib.Path) -> None:
    """Does there what was done here: a folder of a mirror has another name.

    Raises:
      OSError: it cannot be done.
    """
    if (mirror := of(old)) and (mirror := of(new)):
        mirror.move(old, new)


def renew(folder: pathlib.Path) -> None:
    """Makes a mirror that nobody else uses what is at its address; of another folder nothing.

    Raises:
      UserError: it cannot be read.
    """
    if mirror := of(folder):
        mirror.pull(alone=True)


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Has the place of a mirror for a run while the block lasts: fetches what is there, sends the logs from time to
    time and at the end.

    Raises:
      UserError: another run is there; it cannot be read or written.
    """
    mirror = _mirrors[folder]
    if mirror.lease:
        raise UserError(f"workdir {mirror.address!r} is in use by this process; wait until that ends, or name another.")
    with Lease(mirror.address, f"{mirror.address}/{LOCK}", mirror.push, LOGS) as mirror.lease:
        try:
            mirror.pull(alone=True)
            try:
                yield
            except BaseException:
                with contextlib.suppress(UserError):  # the first error counts; what was sent before is there
                    mirror.push()
                raise
            mirror.push()
        finally:
            mirror.lease = None
    shutil.rmtree(folder, ignore_errors=True)  # all of it is there


class Mirror:
    """A folder at an address and its copy on this machine.

    Args:
      address: of the folder, without a slash at its end.
      folder: of this machine.

    Attributes:
      lease: of the run that has it, None where nobody trains.
    """

    def __init__(self, address: str, folder: pathlib.Path) -> None:
        self.address, self.folder = address, folder
        self.lease: Lease | None = None
        self._known = folder.parent / f"{folder.name}.objects"
        self._sent: dict[str, tuple[int, int]] = {}  # path -> size and time of what is there
        self._busy = threading.RLock()

    def owner(self) -> str:
        """Who has the place, another text for another run; "" for nobody.

        Raises:
          OSError: it cannot be told.
        """
        return owner(f"{self.address}/{LOCK}")

    def pull(self, alone: bool = False) -> None:
        """Fetches what is at the address: files at the top, complete checkpoints without their arrays; removes what is
        not there any more.

        Args:
          alone: whether nobody else uses the mirror: everything that is not there is removed.

        Raises:
          UserError: it cannot be read.
        """
        with self._busy, _told(f"{self.address} cannot be read", ""):
            wanted = self._there()
            lazy = sorted({os.path.dirname(path) for path in wanted if os.path.basename(path) == LAZY})
            later = {p for p in wanted if any(p.startswith(f"{folder}/") for folder in lazy)}
            old = self._versions()
            self.folder.mkdir(parents=True, exist_ok=True)
            for folder in lazy:
                (self.folder / folder).mkdir(parents=True, exist_ok=True)
            for path in self._here():
                gone = path not in wanted and (alone or "/" not in path or _WHOLE.fullmatch(path))
                if gone or (path in later and old.get(path) != wanted[path].version):
                    (self.folder / path).unlink(missing_ok=True)
            self._drop_empty({above for path in wanted for above in _above(path)} | set(lazy))
            new = {p: e for p, e in wanted.items() if p not in later and not self._current(p, e, old)}
            self._get(new)
            atomic.write_text(self._known, json.dumps({path: entry.version for path, entry in wanted.items()}))
            self._sent = {path: _stamp(self.folder / path) for path in self._here()}

    def _there(self) -> dict[str, store.Entry]:
        """What is wanted of the address, by path: no more is listed than a run or a checkpoint has."""
        try:
            top = store.entries(self.address)
        except FileNotFoundError:
            return {}
        names = {entry.name for entry in top}
        if MARK in names:  # one checkpoint
            return store.tree(self.address)
        found = {entry.name: entry for entry in top if entry.is_file() and entry.name != LOCK}
        for name in [FOLDER] if FOLDER in names else filter(str.isdecimal, names):
            found |= {f"{name}/{path}": entry for path, entry in store.tree(f"{self.address}/{name}").items()}
        marked = {path.removesuffix(MARK) for path in found if _WHOLE.fullmatch(path) and path.endswith(f"/{MARK}")}
        step = {path: match and f"{match[1]}/" for path in found for match in [_WHOLE.fullmatch(path)]}
        return {p: e for p, e in found.items() if (step[p] in marked if step[p] else "/" not in p)}

    def fetch(self, path: pathlib.Path) -> None:
        """Fetches what is missing in a folder of the mirror.

        Raises:
          OSError: it cannot be read.
        """
        below = path.relative_to(self.folder).as_posix()
        with self._busy:
            old = self._versions()
            if all((self.folder / known).is_file() for known in old if known.startswith(f"{below}/")):
                return
            there = {f"{below}/{name}": entry for name, entry in store.tree(f"{self.address}/{below}").items()}
            self._get({p: e for p, e in there.items() if not self._current(p, e, old)})
            versions = old | {name: entry.version for name, entry in there.items()}
            atomic.write_text(self._known, json.dumps(versions))

    def push(self, folder: pathlib.Path | None = None) -> None:
        """Sends what changed since, but for checkpoints: the logs of a run, pictures, results.

        Raises:
          UserError: it cannot be sent, or another run took the place.
        """
        start = f"{folder.relative_to(self.folder).as_posix()}/" if folder and folder != self.folder else ""
        with self._busy, _told(f"{self.address} cannot be written"):
            if self.lease:
                self.lease.check()
            stamps = {p: _stamp(self.folder / p) for p in self._here() if p.startswith(start) and self._is_log(p)}
            new = {path: stamp for path, stamp in stamps.items() if self._sent.get(path) != stamp}
            _each(self._send, new)
            self._sent |= new

    def push_whole(self, folder: pathlib.Path) -> None:
        """Sends a checkpoint, its mark last; then removes there those that are not here any more.

        Raises:
          UserError: it cannot be sent, or another run took the place.
        """
        name = folder.relative_to(self.folder).as_posix()
        with _told(f"cannot save to {self.address}/{name}", ""):
            self._remove(name)  # a part of it that was sent before
            paths = [path for path in self._here(name) if path != f"{name}/{MARK}"]
            _each(self._send, paths)
            if self.lease:
                self.lease.check()
            self._send(f"{name}/{MARK}")
            above = os.path.dirname(name)
            marks = [p for p in store.tree(f"{self.address}/{above}") if (m := _WHOLE.fullmatch(p)) and m[2] == MARK]
            for mark in marks:
                step = os.path.dirname(mark)
                if not (folder.parent / step).exists() and folder.exists():
                    self._remove(f"{above}/{step}")

    def move(self, old: pathlib.Path, new: pathlib.Path) -> None:
        """Gives a checkpoint there the name that it has here."""
        was, now = (path.relative_to(self.folder).as_posix() for path in (old, new))
        there = store.tree(f"{self.address}/{was}")
        for path in sorted(there, key=lambda path: path != MARK):
            store.move(f"{self.address}/{was}/{path}", f"{self.address}/{now}/{path}")

    def _remove(self, name: str) -> None:
        paths = sorted(store.tree(f"{self.address}/{name}"), key=lambda path: path != MARK)
        store.remove([f"{self.address}/{name}/{path}" for path in paths])

    def _send(self, path: str) -> None:
        file = self.folder / path
        if file.stat().st_size <= SMALL:
            store.write(f"{self.address}/{path}", file.read_bytes())
        else:
            store.upload(file, f"{self.address}/{path}")

    def _get(self, wanted: dict[str, store.Entry]) -> None:
        def get(path: str) -> None:
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic.new_file(file) as new:
                store.download(f"{self.address}/{path}", new)

        _each(get, wanted)

    def _here(self, below: str = "") -> list[str]:
        """The files of the mirror, as paths from it; what is being written is none."""
        found = []
        for folder, inside, names in os.walk(self.folder / below):
            inside[:] = [name for name in inside if not name.startswith(".unfinished-")]
            at = pathlib.Path(folder).relative_to(self.folder)
            found += [(at / name).as_posix() for name in names if not name.startswith(".unfinished-")]
        return found

    def _is_log(self, path: str) -> bool:
        """Whether a file is none of a checkpoint, of one that is being written or that is damaged, nor a lock."""
        return path != LOCK and not re.search(r"(?:^|/)(?:\d+|damaged-[^/]*|[^/]*\.orbax-checkpoint-tmp[^/]*)/", path)

    def _versions(self) -> dict[str, str]:
        try:
            found = jsonfile.read(self._known)
        except UserError:
            return {}
        return {path: version for path, version in found.items() if isinstance(version, str)}

    def _current(self, path: str, entry: store.Entry, old: dict[str, str]) -> bool:
        file = self.folder / path
        same = bool(entry.version) and old.get(path) == entry.version
        return same and file.is_file() and file.stat().st_size == entry.size

    def _drop_empty(self, kept: set[str]) -> None:
        for folder, _, _ in os.walk(self.folder, topdown=False):
            if folder != str(self.folder) and os.path.relpath(folder, self.folder) not in kept:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


class Uploads:
    """Checkpoints of one run on their way to the store, one after the other, while training goes on.

    Args:
      folder: in which each appears at once under the number of its step; where it is in no mirror that is held to be
        written, nothing is done.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        mirror = of(folder)
        self._folder, self._mirror = folder, mirror if mirror and mirror.lease else None
        self._pool = concurrent.futures.ThreadPoolExecutor(1) if self._mirror else None
        self._last: concurrent.futures.Future[None] | None = None
        self._over, self._lost = threading.Event(), 0

    def begin(self, step: int) -> None:
        """Sends the checkpoint of a step once it is complete here; :meth:`settle` comes before the next."""
        if self._pool:
            self._over.clear()
            self._last = self._pool.submit(self._task, self._folder / str(step))

    def settle(self) -> None:
        """As :meth:`wait`, but a store that fails loses a checkpoint there and no run: the next one takes its place.

        Raises:
          UserError: it failed more than :data:`LOST` times in a row, or another run has the place.
        """
        try:
            self.wait()
            self._lost = 0
        except Taken:
            raise
        except UserError as e:
            self._lost += 1
            if self._lost > LOST:
                raise
            log.warning("%s The next one takes its place.", e)

    def wait(self) -> None:
        """Returns once the last is there; none is being written here any more.

        Raises:
          UserError: it could not be sent.
        """
        self._over.set()
        last, self._last = self._last, None
        if last:
            last.result()

    def close(self) -> None:
        """Nothing is sent thereafter."""
        if self._pool:
            self._over.set()
            self._pool.shutdown()

    def _task(self, folder: pathlib.Path) -> None:
        assert self._mirror
        while not folder.exists():
            if self._over.wait(0.05) and not folder.exists():
                return  # it could not be written, which was said
        self._mirror.push()  # a checkpoint never has fewer rows than steps
        self._mirror.push_whole(folder)


def _above(path: str) -> Iterator[str]:
    while path := os.path.dirname(path):
        yield path


def _stamp(file: pathlib.Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _each(call: Callable[[str], None], paths: Iterable[str]) -> None:
    """Calls for each path, several at a time; the first error is raised."""
    with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
        for done in [pool.submit(call, path) for path in paths]:
            done.result()


@contextlib.contextmanager
def _told(what: str, end: str = "; the same command goes on from what is there") -> Iterator[None]:
    """Turns an error of the store or of the disk into a sentence on ``what``."""
    try:
        yield
    except OSError as e:
        raise UserError(f"{what} ({atomic.reason(e)}){end}.") from e
