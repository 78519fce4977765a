"""The folder of a run: whose it is, and where its results came from."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Collection, Mapping
from typing import Any

import jax

import vit_jax
from vit_jax.config import difference, record
from vit_jax.data.sources import Source
from vit_jax.io import atomic, jsonfile
from vit_jax.io.remote import public
from vit_jax.types import UsageError, UserError

FILE = "config.json"


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


def check(workdir: pathlib.Path, raw: Mapping[str, Any], resumable: Collection[str] = ()) -> None:
    """Raises :class:`UsageError` where ``workdir`` holds a run whose result another configuration decides.

    Keys in ``resumable`` do not count.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"workdir {str(workdir)!r} is a file; name a folder.")
    if not (workdir / FILE).exists():
        if (workdir / "checkpoints").exists():
            raise UsageError(f"{workdir} holds checkpoints but no {FILE}; restore that file or use a new workdir.")
        return
    changes = [
        line
        for line in difference(load(workdir), plain(raw))
        if not any(line.startswith((f"{key}:", f"{key}.")) for key in resumable)
    ]
    if changes:
        raise UsageError(
            f"{workdir} holds a run with another configuration ({'; '.join(changes)}); "
            "use a new --workdir, or the old values."
        )


def claim(workdir: pathlib.Path, raw: Mapping[str, Any]) -> None:
    """Creates the folder and writes ``config.json``, atomically; only the first host does.

    Raises:
      UserError: it cannot be written.
    """
    if jax.process_index():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        atomic.write_text(workdir / FILE, json.dumps(plain(raw), indent=1) + "\n")
    except OSError as e:
        raise UserError(f"workdir {str(workdir)!r} cannot be written ({e.strerror}); choose another.") from e


def load(workdir: pathlib.Path) -> dict[str, Any]:
    """The configuration of the run in ``workdir``.

    Raises:
      UserError: there is none, or it is no JSON.
    """
    if not (workdir / FILE).exists():
        raise UserError(f"{str(workdir)!r} holds no run: {FILE} is missing; give the --workdir of a training.")
    return jsonfile.read(workdir / FILE, "; restore it or train in a new workdir")


def provenance() -> dict[str, Any]:
    """Versions, devices, command and (where the package is a checkout) commit: how a result came about."""
    root = pathlib.Path(vit_jax.__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        described = None
    return {
        "vit_jax": vit_jax.__version__,
        "commit": described,
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "command": [public(argument) for argument in sys.argv],
    }
