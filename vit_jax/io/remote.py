"""From where weights are named to where they lie: local paths, ``hf://``, ``gs://`` and ``https://``."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import urllib.parse
from collections.abc import Mapping
from typing import Any

from vit_jax.io import atomic, cache, hub, mirror, store
from vit_jax.io.extras import needed
from vit_jax.io.store import anonymous, public
from vit_jax.io.tensors import check_download, check_head, missing
from vit_jax.types import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that may be asked without encryption."""
SILENCE = 60.0
"""Seconds after which a server that sends nothing is given up."""
REFRESH = "VIT_JAX_REFRESH"
"""The variable that, set to 1, has files fetched again that are kept already."""


def fetch(source: str) -> pathlib.Path:
    """A local file or folder with what ``source`` names.

    Args:
      source: a path; ``hf://org/name[@revision][/file]`` (see :func:`.hub.fetch_hub`); ``gs://``, ``s3://`` or another
        address for the folder of a run or of weights, whose mirror it is (:mod:`.mirror`); or, or ``https://``, for one
        file, which is kept in ``$XDG_CACHE_HOME/vit_jax/downloads`` (``~/.cache`` by default) and not asked for again
        unless :data:`REFRESH` is set. An address that ends in ``#sha256=...`` is held to that.

    Raises:
      UserError: it does not exist, cannot be fetched, or is not what its checksum says.
    """
    scheme, colon, rest = source.partition("://")
    if not colon:
        path = pathlib.Path(os.path.expanduser(source))
        if source and os.path.exists(path):  # unlike Path.exists it never raises, whatever the name
            return path
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) and not os.path.exists(path.parent):
            raise UserError(f"{source!r} does not exist here; a repository of the hub is written 'hf://{source}'.")
        raise UserError(missing(path) if source else "the path of the weights is empty.")
    shown = public(source)
    if scheme == "hf":
        if shown != source:
            raise UserError(f"{shown!r}: an address of the hub has neither user nor query; access is by HF_TOKEN.")
        return hub.fetch_hub(source)
    try:
        address = urllib.parse.urlsplit(source)
        if not source.isprintable():
            raise ValueError("a character that none has")
    except ValueError as e:
        raise UserError(f"{shown!r} is no address ({e}).") from None
    if scheme in ("", "http", "ftp") and not loopback(source):
        raise UserError(
            f"{shown!r} cannot be fetched; give a path, hf://ORG/NAME, gs://BUCKET/FILE or https://HOST/FILE."
        )
    if not scheme.startswith("http") and rest.strip("/"):
        try:
            if store.is_dir(source.partition("#")[0]):
                return mirror.local(source)
        except OSError as e:
            raise UserError(f"{shown!r} cannot be fetched: {e.strerror}.") from e
    path = _fetch_url(source, urllib.parse.unquote(address.path).rpartition("/")[2])
    if wanted := urllib.parse.parse_qs(address.fragment).get("sha256"):
        _verify(path, wanted[0], shown)
    return path


def downloads() -> pathlib.Path:
    """Where single files are kept, each in a folder named by the SHA-256 of its address (without user and fragment)."""
    return cache.folder("downloads")


def remedy(path: pathlib.Path) -> str:
    """How a sentence about an unusable file ends: how it is fetched again, "" for one that was not fetched."""
    return f" ({REFRESH}=1 fetches it again)" if path.is_relative_to(downloads()) else ""


def _fetch_url(url: str, name: str) -> pathlib.Path:
    shown, url = public(url), url.partition("#")[0]
    if name in ("", ".", "..") or "\\" in name or "\0" in name or cache.length(name) > cache.MAX_NAME:
        raise UserError(f"{shown!r} names no file; give the address of one, such as https://host/model.safetensors.")
    scheme, _, rest = url.partition("://")
    path = downloads() / hashlib.sha256(f"{scheme}://{anonymous(rest)}".encode()).hexdigest() / name
    if path.is_file() and os.environ.get(REFRESH, "") in ("", "0"):
        return path
    files, remote = _open_remote(url, shown)
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = stack.enter_context(atomic.new_file(path))
        except OSError as e:
            raise UserError(f"{shown!r} cannot be kept in {path.parent}: {e.strerror}.") from None
        _get(shown, files, remote, new)
        try:
            check_download(new)
        except UserError as e:
            raise UserError(f"{shown!r} was not kept: {str(e).replace(str(new), 'it')}") from None
    return path


def _get(shown: str, files: Any, remote: str, path: pathlib.Path) -> None:
    try:
        files.get_file(remote, str(path), callback=_watch(shown, path))
        about = files.info(remote)  # afterwards: over HTTP it calls any failure a missing file
        announced = about.get("size")
        if announced is not None and (found := os.path.getsize(path)) != announced:
            raise UserError(f"{shown!r} broke off after {found:,} of {announced:,} bytes; run the same command again.")
        if md5 := about.get("md5Hash"):
            _verify(path, base64.b64decode(md5).hex(), shown)
    except FileNotFoundError:
        raise UserError(f"{shown!r} does not exist; check its spelling.") from None
    except UserError:
        raise
    except Exception as e:  # what the backends raise has no common type
        reason = public((str(e) or type(e).__name__).splitlines()[0])[:160]
        raise UserError(f"{shown!r} cannot be fetched ({reason}); check the address, and try again.") from None


def _watch(shown: str, path: pathlib.Path) -> Any:
    """What looks at a file while it comes: at what it says of its size, at how it begins, at how much there is."""
    from fsspec.callbacks import Callback

    class Watch(Callback):
        def set_size(self, size: int | None) -> None:
            super().set_size(size)
            self.check(size or 0)
            if size and size > shutil.disk_usage(path.parent).free:
                raise UserError(f"{shown!r} has {size:,} bytes, more than are free in {path.parent}.")

        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            self.check(self.value)
            if self.value == inc and path.stat().st_size:  # the first piece
                check_head(path)

        def check(self, size: int) -> None:
            cache.check_size(shown, size)

    return Watch()


def _verify(path: pathlib.Path, wanted: str, shown: str) -> None:
    """Compares a file with a SHA-256 or MD5 of it in hexadecimal; one with another does not stay.

    Raises:
      UserError: it is another.
    """
    with open(path, "rb") as f:
        found = hashlib.file_digest(f, "md5" if len(wanted) == 32 else "sha256").hexdigest()
    if found != wanted.lower():
        path.unlink()
        raise UserError(
            f"{shown!r} has the checksum {found}, not {wanted}; it was not kept: run the same command again."
        )


def _open_remote(url: str, shown: str) -> tuple[Any, str]:
    """The file system of an address, and the file's name in it."""
    with needed(f"fetching {shown!r}", "remote"):
        from fsspec.core import url_to_fs

        return url_to_fs(url, skip_instance_cache=True, **(http(url) if url.startswith("http") else {}))


def loopback(url: str) -> bool:
    """Whether an address of ``http://`` leads nowhere but to this machine."""
    address = urllib.parse.urlsplit(url)
    return address.scheme == "http" and address.hostname in LOOPBACK


def http(url: str) -> Mapping[str, Any]:
    """Options of an HTTP client that gives a silent server up and is led nowhere else than where it may be sent."""
    import aiohttp

    async def redirected(session: Any, context: Any, params: Any) -> None:
        del session, context
        target = urllib.parse.urljoin(str(params.url), params.response.headers.get("Location", ""))
        if not (target.startswith("https://") or (loopback(url) and loopback(target))):
            raise UserError(f"{public(url)!r} leads to {public(target)!r}, which is not encrypted; it was not fetched.")

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(redirected)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
    return {"client_kwargs": {"trace_configs": [trace], "timeout": timeout}}
