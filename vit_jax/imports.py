"""Python files and modules of one's own, by whose classes a configuration names what no table has.

A file is run under a name that follows from its path and content, and so is each that it imports from beside it: two
files ``parts.py`` are two modules. A file that has not changed is not run again, so that a class is the same whoever
asks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import sys
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.checks import shown, suggest
from vit_jax.io import files
from vit_jax.types import UsageError, UserError

MAX_BYTES = 2**20
"""A larger file is none that somebody wrote."""
MARK = "@"
"""In the name that a file is run under, which no import statement can hold."""
DIGEST = "#sha256="
"""Stands between the path of a file and the checksum of its content."""
NAMED = "--config.imports=PLACE, --imports PLACE where a command has it, changes={'imports': ...} in Python"
"""How imports are named."""


@dataclasses.dataclass(frozen=True)
class Import:
    """A file or module that was run, and what it defines.

    Attributes:
      place: absolute path of a file, or dotted name of a module.
      sha256: of the file's content, hexadecimal; empty for a module.
      classes: its public classes by name: those defined in it, beside it or in its package.
    """

    place: str
    sha256: str = ""
    classes: Mapping[str, type] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def parse(cls, value: Any, path: str) -> Import:
        """Runs what ``value`` names, ``"parts.py"`` or ``"my_package.parts"``.

        Raises:
          UsageError: it does not exist, or fails (with file and line); a run names it that may be of others.
        """
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        if not isinstance(value, str):
            raise UsageError(f"{path}={shown(value)} is no import; give a file such as 'parts.py', or a module.")
        if isinstance(value, Recorded):
            value.check()
        place = value.partition(DIGEST)[0]
        if not is_file(place):
            return cls(place, classes=_classes(_module(place, path)))
        file = os.path.abspath(os.path.expanduser(place))
        if not os.path.isfile(file):
            raise UsageError(value.gone if isinstance(value, Recorded) else _missing(place, path))
        module = opened(file)
        return cls(file, _RUNS[file].files[file], _classes(module))

    def __str__(self) -> str:
        return f"{self.place}{DIGEST}{self.sha256}" if self.sha256 else self.place


class Recorded(str):
    """An import that a run names, not the user: its code may be of others.

    Attributes:
      of: the run, a folder or an address.
    """

    of: str

    def __new__(cls, text: str, of: str) -> Recorded:
        made = super().__new__(cls, text)
        made.of = of
        return made

    @property
    def place(self) -> str:
        """A file or a module."""
        return self.partition(DIGEST)[0]

    @property
    def gone(self) -> str:
        """What is said where the file is not there."""
        return f"{self.place}, which the run {self.of} imports, does not exist any more; name where it is now: {NAMED}."

    @property
    def refused(self) -> str:
        """Why it is not run unless the user names it, as a part of a sentence; "" where it is.

        Code may have come with a run that was fetched, or in whose folder it lies.
        """
        if "://" in self.of:
            return "and was fetched"
        if is_file(self.place) and (not os.path.isabs(self.place) or self.place.startswith(("/proc/", "/dev/"))):
            return "by no absolute path"
        return "from its own folder" if any(_inside(place, self.of) for place in _lies(self.place)) else ""

    def check(self) -> None:
        """Raises :class:`UsageError` where it is :attr:`refused`."""
        if self.refused:
            raise UsageError(
                f"the run {self.of} imports {self.place[:300]!r} {self.refused}: code of others is not run unasked. "
                f"Read it, and name it if you trust it: {NAMED}."
            )


def recorded(config: Mapping[str, Any], of: str | os.PathLike[str]) -> dict[str, Any]:
    """A stored configuration whose imports say that the run ``of`` names them."""
    found = tuple(Recorded(text, os.fspath(of)) for text in texts(config))
    return {**config, "imports": found} if found else dict(config)


def texts(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The imports of a plain configuration, whatever else it may hold in their place left out."""
    found = config.get("imports")
    found = found if isinstance(found, list | tuple) else (found,)
    return tuple(text if isinstance(text, str) else str(text) for text in found if isinstance(text, str | Import))


def changed(now: Sequence[Import], before: Iterable[str]) -> list[str]:
    """A note for each file of ``now`` that was another one ``before``."""
    there, notes = {os.path.basename(i.place): i for i in now if i.sha256}, []
    for place, _, digest in (text.partition(DIGEST) for text in before):
        own = there.get(os.path.basename(place))
        if digest and own and digest not in {i.sha256 for i in now}:
            notes.append(f"{own.place} has changed since the run was trained with it; its classes are as they are now")
    return list(dict.fromkeys(notes))


class _Run(NamedTuple):
    """A file that was run, and the checksums of what it was made of by path, its own among them."""

    module: types.ModuleType
    files: Mapping[str, str]


_RUNS: dict[str, _Run] = {}
"""Absolute path -> the file's last run: a memory of what is a function of the files alone."""


def opened(file: str) -> types.ModuleType:
    """The module of a file, run unless it and what it imports from beside it are as they were when it last was.

    Raises:
      UsageError: see :func:`run`.
    """
    found = _RUNS.get(os.path.abspath(file))
    same = found and all(os.path.isfile(path) and _digest(_read(path)) == was for path, was in found.files.items())
    return found.module if found and same else run(file)


def run(file: str) -> types.ModuleType:
    """Runs a Python file, which may import files beside it.

    Raises:
      UsageError: it cannot be read, or fails (with the line).
    """
    path, source = os.path.abspath(file), _read(file)
    name = f"{os.path.basename(path).removesuffix('.py')}{MARK}{_digest(path.encode() + source)[:12]}"
    spec = importlib.util.spec_from_loader(name, _Source(name, file, source), origin=path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    module.__file__ = path
    sys.modules[name] = module
    _RUNS[path] = _Run(module, {path: _digest(source)})
    try:
        with explained(file), beside(module):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name], _RUNS[path]
        raise
    return module


class _Source(importlib.machinery.SourceFileLoader):
    """Runs the text that was read, and leaves nothing compiled behind."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self._source, self.path)


class _Beside(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the files of a folder by name, each under a name of its own."""

    def __init__(self, folder: str) -> None:
        self.folder, self.names, self.files = folder, set[str](), dict[str, str]()

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        file = os.path.join(self.folder, f"{fullname}.py")
        return None if path or not os.path.isfile(file) else importlib.machinery.ModuleSpec(fullname, self, origin=file)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = opened(str(spec.origin))
        self.names.add(spec.name)
        self.files |= _RUNS[str(spec.origin)].files
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """It was run before; what importing made of it is undone."""
        module.__spec__ = importlib.util.spec_from_loader(module.__name__, module.__loader__, origin=module.__file__)


@contextlib.contextmanager
def beside(module: types.ModuleType) -> Iterator[None]:
    """Lets the block import what lies beside the file of ``module``; nobody else finds it by that name.

    Whatever is imported already stays what it is, and packages are imported as ever.
    """
    file = str(module.__file__)
    finder = _Beside(os.path.dirname(file))
    sys.meta_path.insert(0, finder)
    sys.path.insert(0, finder.folder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        with contextlib.suppress(ValueError):
            sys.path.remove(finder.folder)
        for name in finder.names:
            sys.modules.pop(name, None)
        _RUNS[file] = _Run(module, {**_RUNS[file].files, **finder.files})


@contextlib.contextmanager
def explained(*places: str) -> Iterator[None]:
    """Makes a sentence of what goes wrong in a Python file, or in those of a folder, with the line."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as e:
        frames = [(f.filename, f.lineno) for f in traceback.extract_tb(e.__traceback__)]
        inside = (f for f in reversed(frames) if any(f[0] == p or f[0].startswith(p + os.sep) for p in places))
        place = next(inside, (places[0], None))
        if isinstance(e, SyntaxError) and e.filename:
            place = e.filename, e.lineno
        where = f", line {place[1]}" if place[1] else ""
        other = _file_of(e.name or "") if isinstance(e, ImportError) else None
        if other in {os.path.abspath(frame.filename) for frame in traceback.extract_stack()}:  # it is not done yet
            raise UsageError(f"{place[0]}{where}: it and {other} import each other; move what both need.") from e
        reason = str(e.msg if isinstance(e, SyntaxError) else e).strip().splitlines()[:1]
        reason = [re.sub(f"{MARK}[0-9a-f]{{12}}", "", text) for text in reason]
        raise UsageError(f"{place[0]}{where}: {': '.join([type(e).__name__, *reason])[:200]}.") from e


def is_file(place: str) -> bool:
    """Whether an import is a file; else it is a module."""
    return place.endswith(".py") or "/" in place or os.sep in place


def _read(file: str) -> bytes:
    try:
        return files.read(file, MAX_BYTES)
    except OSError as e:
        raise UsageError(f"{file} cannot be read ({e.strerror}); give a Python file.") from None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _classes(module: types.ModuleType) -> dict[str, type]:
    """The public classes of a module, without those from elsewhere: another folder, or another package."""

    def home(name: str) -> str:
        return os.path.dirname(_file_of(name) or name) if MARK in name else name.partition(".")[0]

    public = (v for n, v in vars(module).items() if isinstance(v, type) and not n.startswith("_"))
    return {cls.__name__: cls for cls in public if home(cls.__module__) == home(module.__name__)}


def _file_of(name: str) -> str | None:
    return getattr(sys.modules.get(name), "__file__", None)


def defined_in(module: types.ModuleType) -> list[str]:
    """Files in which the public classes of a file that was run are defined: itself, and those beside it."""
    return list(dict.fromkeys(str(sys.modules[c.__module__].__file__) for c in _classes(module).values()))


def _module(name: str, path: str) -> types.ModuleType:
    """The module ``name``, imported."""
    what = f"{path}={shown(name)}"
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name) or name == "__main__":
        raise UsageError(f"{what} is no module; give a file such as 'parts.py', or a name such as 'my_package.parts'.")
    places = _lies(name)
    if not places:
        top, file = shown(name.partition(".")[0]), shown(os.path.join(*name.split(".")) + ".py")
        raise UsageError(f"{what}: there is no module {top}; install it, or name its file, such as {file}.")
    with explained(*places):
        return importlib.import_module(name)


def _lies(place: str) -> list[str]:
    """Where the code of an import lies, file and folders; of a module in a package those of it. Runs nothing."""
    if is_file(place):
        return [place]
    try:
        spec = importlib.util.find_spec(place.partition(".")[0])
    except (ImportError, ValueError):
        return []
    return [p for p in (spec.origin, *(spec.submodule_search_locations or ())) if p] if spec else []


def _inside(place: str, folder: str) -> bool:
    """Whether ``place`` lies in ``folder``, by its name or in truth."""
    ways = ((os.path.abspath(place), os.path.abspath(folder)), (os.path.realpath(place), os.path.realpath(folder)))
    return any(os.path.commonpath([inner, outer]) == outer for inner, outer in ways)


def _missing(place: str, path: str) -> str:
    folder = os.path.dirname(place)
    there = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    near = [os.path.join(folder, name) for name in there if name.endswith(".py")]
    return f"{path}: there is no file {shown(place)}{suggest(place, near) if near else '.'}"
