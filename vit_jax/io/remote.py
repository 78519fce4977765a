"""From where weights are named to where they lie: local paths, ``hf://``, ``gs://`` and ``https://``."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import urllib.parse
from typing import Any

from vit_jax.io import atomic, cache, hub
from vit_jax.io.tensors import missing
from vit_jax.types import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that may be asked without encryption."""


def fetch(source: str) -> pathlib.Path:
    """A local file or folder with what ``source`` names.

    Args:
      source: a path; ``hf://org/name[@revision][/file]`` (see :func:`.hub.fetch_hub`); ``gs://`` or ``https://`` for
        one file, which is kept in ``$XDG_CACHE_HOME/vit_jax/downloads`` (``~/.cache`` by default), not asked for again.

    Raises:
      UserError: it does not exist, or cannot be fetched.
    """
    scheme, colon, _ = source.partition("://")
    if not colon:
        path = pathlib.Path(os.path.expanduser(source))
        if source and os.path.exists(path):  # unlike Path.exists it never raises, whatever the name
            return path
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) and not os.path.exists(path.parent):
            raise UserError(f"{source!r} does not exist here; a repository of the hub is written 'hf://{source}'.")
        raise UserError(missing(path) if source else "the path of the weights is empty.")
    if scheme == "hf":
        return hub.fetch_hub(source)
    try:
        address = urllib.parse.urlsplit(source)
    except ValueError as e:
        raise UserError(f"{source!r} is no address ({e}).") from None
    if scheme in ("gs", "https") or (scheme == "http" and address.hostname in LOOPBACK):
        return _fetch_url(source, urllib.parse.unquote(address.path).rpartition("/")[2])
    raise UserError(f"{source!r} cannot be fetched; give a path, hf://ORG/NAME, gs://BUCKET/FILE or https://HOST/FILE.")


def downloads() -> pathlib.Path:
    """Where single files are kept, each in a folder named by the SHA-256 of its address."""
    return cache.folder("downloads")


def _fetch_url(url: str, name: str) -> pathlib.Path:
    if name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise UserError(f"{url!r} names no file; give the address of one, such as https://host/model.safetensors.")
    path = downloads() / hashlib.sha256(url.encode()).hexdigest() / name
    if path.is_file():
        return path
    files, remote = _open_remote(url)
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = stack.enter_context(atomic.new_file(path))
        except OSError as e:
            raise UserError(f"{url!r} cannot be kept in {path.parent}: {e.strerror}.") from None
        _get(url, files, remote, new)
    return path


def _get(url: str, files: Any, remote: str, path: pathlib.Path) -> None:
    try:
        files.get_file(remote, str(path))
        announced = files.info(remote).get("size")  # afterwards: over HTTP it calls any failure a missing file
        if announced is not None and (found := os.path.getsize(path)) != announced:
            raise UserError(f"{url!r} broke off after {found:,} of {announced:,} bytes; run the same command again.")
    except FileNotFoundError:
        raise UserError(f"{url!r} does not exist; check its spelling.") from None
    except UserError:
        raise
    except Exception as e:  # what the backends raise has no common type
        reason = (str(e) or type(e).__name__).splitlines()[0][:160]
        raise UserError(f"{url!r} cannot be fetched ({reason}); check the address, and try again.") from e


def _open_remote(url: str) -> tuple[Any, str]:
    """The file system of an address, and the file's name in it."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)
    except ImportError as e:
        raise UserError(
            f"fetching {url!r} takes packages that are not installed ({e}): pip install 'vit_jax[remote]'."
        ) from None
