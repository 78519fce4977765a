"""The folder of a run: whose it is, and where its results came from."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import itertools
import json
import logging
import os
import pathlib
import shlex
import socket
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import PIL

from vit_jax import checkpoint, hosts, imports, loggers, metrics
from vit_jax.config import difference, parse, record, unparse
from vit_jax.configfile import STORED
from vit_jax.data import resizing
from vit_jax.data.sources import Source
from vit_jax.io import atomic, installation, jsonfile, mirror
from vit_jax.io.store import public
from vit_jax.train.config import TrainConfig
from vit_jax.types import UsageError, UserError

log = logging.getLogger(__name__)

FILE, LOCK = STORED, "lock"
FILES, FOLDERS = (FILE, LOCK, metrics.FILE, "results.json"), (checkpoint.FOLDER, loggers.EVENTS, "evaluation")
"""What lies in a workdir, as files and as folders."""
SEEN = 10.0
"""Seconds until what one host writes is seen by another: a network's file system remembers what was not there."""


def place(folder: str | os.PathLike[str]) -> pathlib.Path:
    """The workdir ``folder``, for an address its mirror (:mod:`vit_jax.io.mirror`), which :func:`lock` fills.

    Raises:
      UsageError: it is the empty text, as of a variable of the shell that is not set; that would be this folder.
    """
    if not os.fspath(folder):
        raise UsageError("the workdir is empty (a variable that is not set?); name a folder, '.' for this one.")
    return mirror.local(folder, use=f"train-{hosts.index()}", pull=False)


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Makes ``workdir`` and keeps it for this run while the block lasts; what stays empty is removed again.

    The system's lock on the file ``lock`` ends with its process: a file that a killed one left is no obstacle. Only
    training takes it, on the first host; the others begin once it has it and they see it.

    Raises:
      UsageError: ``workdir`` is a file.
      UserError: another process trains there; it cannot be written; a host does not see it.
    """
    with contextlib.ExitStack() as stack:
        refused: UserError | None = None
        if hosts.first():
            try:
                stack.enter_context(mirror.held(workdir) if mirror.of(workdir) else _held(workdir))
            except UserError as e:
                refused = e
        _agree(workdir, refused)
        if not hosts.first():
            mirror.renew(workdir)
        yield


def _agree(workdir: pathlib.Path, refused: UserError | None) -> None:
    """Raises on every host what the first was ``refused``, and where some do not see what it wrote."""
    mine = mirror.shown(str(workdir.absolute())), _owner_seen(workdir) if refused is None and hosts.first() else ""
    said = [*mine, str(refused or ""), refused.status if refused else 0]
    folder, text, reason, status = json.loads(hosts.share("the workdir's lock", json.dumps(said))[0])
    if refused:
        raise refused
    if reason:
        raise (UsageError if status == UsageError.status else UserError)(reason)
    end = time.monotonic() + SEEN
    while not (sees := _owner_seen(workdir) == text) and time.monotonic() < end:
        time.sleep(0.2)
    answers = hosts.share("what they see of the workdir", "sees" if sees else "", SEEN + hosts.PATIENCE)
    if blind := [hosts.name(i) for i, answer in enumerate(answers) if not answer]:
        raise UserError(
            f"what host 1 wrote to {folder!r} is not seen by {', '.join(blind)}; give all hosts the same --workdir, on "
            "a disk that they share."
        )


def _owner_seen(workdir: pathlib.Path) -> str:
    """Whose this host sees that the workdir is, nothing where that cannot be seen."""
    try:
        if there := mirror.of(workdir):
            return there.owner()
        return (workdir / LOCK).read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


@contextlib.contextmanager
def _held(workdir: pathlib.Path) -> Iterator[None]:
    """The lock of one host."""
    try:
        made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
        if workdir.exists() and not workdir.is_dir():
            raise UsageError(f"workdir {str(workdir)!r} is a file; name a folder.")
        workdir.mkdir(parents=True, exist_ok=True)
        held = _lock(workdir / LOCK)
    except (OSError, ValueError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"workdir {str(workdir)!r} cannot be written ({atomic.reason(e)}); choose another.") from e
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(held), os.stat(workdir / LOCK)):  # and not one of a folder made anew
                os.unlink(workdir / LOCK)
        os.close(held)
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def _lock(path: pathlib.Path) -> int:
    """A descriptor of ``path``, which is locked and tells by whom."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(file)
            os.close(file)
            raise UserError(
                f"workdir {str(path.parent)!r} is in use by {owner}; wait until it ends, or name another."
            ) from None
        except OSError as e:
            log.warning("%s cannot be locked (%s): see to it that no second run writes there.", path, e.strerror)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):  # else it was removed before it was locked
                break
        os.close(file)
    try:
        os.ftruncate(file, 0)
        now = datetime.datetime.now().isoformat(" ", "seconds")
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode(), 0)
    except OSError:
        os.close(file)
        raise
    return file


def _owner(file: int) -> str:
    """Who says that the lock is theirs; they may be about to."""
    for _ in range(20):
        if text := os.pread(file, 200, 0).decode("utf-8", "replace").strip():
            return text
        time.sleep(0.05)
    return "another process"


def plain(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON would give it back; of Python objects it holds a record, of addresses no password."""

    def default(value: Any) -> Any:
        if isinstance(value, Source):
            return {"num_examples": len(value), "class_names": list(value.info.class_names), **record(value)}
        return record(value)

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shown(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [shown(inner) for inner in value]
        return public(value) if isinstance(value, str) else value

    return shown(json.loads(json.dumps(raw, default=default)))


def complete(config: TrainConfig) -> dict[str, Any]:
    """``config`` as :func:`plain` data with every key, those that are at their default too."""
    return plain(unparse(TrainConfig, config))


def check(workdir: pathlib.Path, raw: Mapping[str, Any], resumable: Collection[str] = ()) -> None:
    """Raises :class:`UsageError` where ``workdir`` holds a run whose result another configuration decides.

    Keys in ``resumable`` do not count. So it does where something else lies in the place of what a run writes.
    """
    for name in (*FILES, *FOLDERS):
        there, kind = workdir / name, "file" if name in FILES else "folder"
        if there.exists() and not (there.is_file() if name in FILES else there.is_dir()):
            raise UsageError(f"{there} is in the way of a {kind} of that name; move it, or use a new workdir.")
    if not (workdir / FILE).exists():
        if (workdir / "checkpoints").exists():
            raise UsageError(f"{workdir} holds checkpoints but no {FILE}; restore that file or use a new workdir.")
        return
    old = load(workdir)
    if "imports" in raw:
        old["imports"] = raw["imports"]  # what it imported itself may be gone
    changes = _changes(old, raw, resumable)
    if changes:
        raise UsageError(
            f"{workdir} holds a run with another configuration ({'; '.join(map(_line, changes))}); use the old values, "
            f"or train on in a new workdir: {_onward(workdir, old, changes)}."
        )


Change = tuple[str, Any, Any]
"""Dotted key, old and new value."""


def _changes(old: Mapping[str, Any], raw: Mapping[str, Any], resumable: Collection[str]) -> list[Change]:
    """How ``raw`` differs from ``old``, the shortest way of saying it: either may leave defaults out."""
    ways = [(old, plain(raw))]
    with contextlib.suppress(UserError):  # no configuration of this version
        ways.append((old, complete(parse(TrainConfig, raw))))
        ways.append((complete(parse(TrainConfig, old)), ways[-1][1]))  # but for one with objects of Python
    counted = [
        [c for c in way if not any(c[0] == key or c[0].startswith(f"{key}.") for key in resumable)]
        for way in itertools.starmap(difference, ways)
    ]
    return min(counted, key=len)


def _line(change: Change) -> str:
    text = "{}: {!r} -> {!r}".format(*change)
    return text if len(text) < 120 else f"{text[:119]}…"


def _onward(workdir: pathlib.Path, old: Mapping[str, Any], changes: list[Change]) -> str:
    """The command that goes on from a run with ``changes``, and what becomes of its schedule."""
    words = [f"--config.{key}={value}" for key, _, value in changes]
    short = len(words) <= 4 and sum(map(len, words)) < 160
    command = ["vit_jax", "train", "--config", str(workdir), *(words if short else [])]
    drop = [f"--config.{key}=None" for key in ("init", "resume_from") if old.get(key)]
    more = "" if short else " with those changes"
    init = shlex.join([*command, *(d for d in drop if "init" not in d), f"--config.init={workdir}"])
    resume = shlex.join([*(d for d in drop if "init" in d), f"--config.resume_from={workdir}"])
    return (
        f"{init} --workdir NEW{more} takes its parameters and starts the schedule anew, {resume} in place of "
        "--config.init keeps optimizer and step, at which the new schedule goes on"
    )


def claim(workdir: pathlib.Path, raw: Mapping[str, Any]) -> None:
    """Creates the folder and writes ``config.json``, atomically; only the first host does.

    Raises:
      UserError: it cannot be written.
    """
    if jax.process_index():
        return
    with atomic.writing(f"workdir {str(workdir)!r}", "; or choose another"):
        workdir.mkdir(parents=True, exist_ok=True)
        atomic.write_text(workdir / FILE, json.dumps(plain(raw), indent=1) + "\n")


def load(workdir: pathlib.Path) -> dict[str, Any]:
    """The configuration of the run in ``workdir``.

    Raises:
      UserError: there is none, or it is no JSON.
    """
    if not (workdir / FILE).exists():
        raise UserError(f"{str(workdir)!r} holds no run: {FILE} is missing; give the --workdir of a training.")
    stored = jsonfile.read(workdir / FILE, "; restore it or train in a new workdir")
    return imports.recorded(stored, mirror.shown(str(workdir)))


def imported(workdir: pathlib.Path) -> tuple[str, ...]:
    """What the run in ``workdir`` imports, as it recorded it; nothing where there is none."""
    return imports.texts(load(workdir)) if (workdir / FILE).is_file() else ()


def provenance() -> dict[str, Any]:
    """Versions, commit or record of what is installed, devices and command: how a result came about."""
    return {
        **installation.provenance(),
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "images": ", ".join(filter(None, (f"pillow {PIL.__version__}", resizing.version()))),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "command": [public(argument) for argument in sys.argv],
    }
