"""Weights and their JSON files from the Hugging Face hub: ``hf://org/name[@revision][/file]``, cached and verified."""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import re
import urllib.parse
from collections.abc import Collection, Iterable

from vit_jax.checks import suggest
from vit_jax.io import cache
from vit_jax.io.sidecar import JSON, TOKENIZERS
from vit_jax.types import UserError

log = logging.getLogger(__name__)

WEIGHTS = (
    r"model\.safetensors",
    r"model\.safetensors\.index\.json",
    r"(?!.*-\d+-of-\d+)[^/]+\.safetensors",
    r"[^/]+\.npz",
    r"pytorch_model\.bin",
    r"pytorch_model\.bin\.index\.json",
    r"[^/]+\.(pth|pt|ckpt|pth\.tar)|[^/]+pytorch_model\.bin",
)
"""Which of a folder's files are its weights: the first of these patterns that any matches."""

BESIDE = (*JSON, *TOKENIZERS)
"""Files that describe weights; they are fetched with them."""

_REMEDY = "; what is in the cache can be used without a connection (HF_HUB_OFFLINE=1)."
_URI = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/pr/\d+|[^/@]+))?(?:/(?P<file>.+))?")


def choose(names: Collection[str], where: str) -> str:
    """The weights among the names of a folder's files, after :data:`WEIGHTS`.

    Raises:
      UserError: there are none, or several equally good ones.
    """
    for pattern in WEIGHTS:
        found = sorted(name for name in names if re.fullmatch(pattern, name))
        if len(found) > 1:
            raise UserError(f"{where} holds several weights; name one of them: {', '.join(found[:24])}.")
        if found:
            return found[0]
    there = ", ".join(sorted(names)[:24]) or "nothing"
    raise UserError(f"{where} holds no weights (.safetensors, .npz, .pth, .pt, .bin or .ckpt) but {there}.")


def fetch_hub(source: str) -> pathlib.Path:
    """Downloads what is not in the hub's cache yet, and verifies all of it.

    ``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE`` and ``HF_TOKEN`` mean what they always do. Where
    the hub cannot be reached the cached files of the revision are used, and a warning says so.

    Args:
      source: ``hf://org/name[@revision][/file]``; a slash in the name of a branch is written ``%2F``.

    Returns:
      The file, or without one the folder of the revision; :data:`BESIDE` lie there, too.

    Raises:
      UserError: no such repository, revision or file; no access; no connection and not cached; a wrong checksum.
    """
    repo, revision, file = address(source)
    if _offline():
        return _from_cache(repo, revision, file, source, "HF_HUB_OFFLINE is set")
    try:
        names = _list(repo, revision, source)
    except ConnectionError as e:
        return _from_cache(repo, revision, file, source, str(e))
    wanted = _wanted(names, file, source)
    try:  # the weights last: where they are cached everything is
        paths = [_download(repo, revision, name, source) for name in reversed(wanted)]
    except ConnectionError as e:
        raise UserError(f"{source!r} cannot be fetched ({e}); try again{_REMEDY}") from e
    folders = {path.parents[name.count("/")] for path, name in zip(paths, reversed(wanted), strict=True)}
    if len(folders) > 1:
        raise UserError(f"{source!r} changed while it was fetched; run the same command again.")
    return paths[-1] if file else folders.pop()


def address(source: str) -> tuple[str, str, str | None]:
    """Repository, revision and file (None: the weights in it) that ``source`` names.

    Raises:
      UserError: it names none.
    """
    match = _URI.fullmatch(source.rstrip("/"))
    if not match:
        raise UserError(
            f"{source!r} cannot be read; write hf://ORG/NAME, hf://ORG/NAME@REVISION or hf://ORG/NAME/FILE."
        )
    repo, revision, file = match["repo"], urllib.parse.unquote(match["revision"] or "main"), match["file"]
    for name in (repo, revision, file or "-"):
        _check_name(name, source)
    if cache.length(repo) > cache.MAX_NAME:
        raise UserError(f"{source!r}: a name of more than {cache.MAX_NAME} bytes is no repository's.")
    return repo, revision, file


def _wanted(names: Collection[str], file: str | None, source: str) -> list[str]:
    """Files to fetch: the weights first, then shards that belong to them, then what describes them."""
    if file and file not in names:
        near = suggest(file, names) if names else "."
        raise UserError(f"{source!r} does not exist: the repository has no file {file!r}{near}")
    if not file and (ours := _run_files(names)):
        return _checked([*ours, *(name for name in ("config.json",) if name in names)], source)
    weights = file or choose(names, repr(source))
    folder = weights.rpartition("/")[0]
    shards = []
    if index := re.fullmatch(r"(?P<stem>.+)\.(?P<kind>safetensors|bin)\.index\.json", weights):
        shard = rf"{re.escape(index['stem'])}-\d+-of-\d+\.{index['kind']}"
        shards = sorted(name for name in names if re.fullmatch(shard, name))
    beside = [name for f in (f"{folder}/", "") for b in BESIDE if (name := f.lstrip("/") + b) in names]
    return _checked(dict.fromkeys([weights, *shards, *beside]), source)


def _run_files(names: Collection[str]) -> list[str]:
    """Those of the newest checkpoint where there are folders of our own format, which has no file of weights."""
    steps = {name: int(found[1]) for name in names if (found := re.match(r"checkpoints/(\d{1,18})/", name))}
    newest = max(steps.values(), default=None)
    return sorted(name for name, step in steps.items() if step == newest)


def _checked(names: Iterable[str], source: str) -> list[str]:
    wanted = list(names)
    for name in wanted:
        _check_name(name, source)
    return wanted


def _check_name(name: str, source: str) -> None:
    parts = name.split("/")
    if re.search(r"[\\:\0]", name) or any(part in ("", ".", "..") for part in parts):
        raise UserError(f"{source!r}: the name {name!r} leads out of its folder; it was not fetched.")
    if max(cache.length(part) for part in parts) > cache.MAX_NAME:
        raise UserError(f"{source!r}: a name of more than {cache.MAX_NAME} bytes is no file's; it was not fetched.")


def _list(repo: str, revision: str, source: str) -> list[str]:
    from huggingface_hub import HfApi, constants

    try:
        info = HfApi(endpoint=endpoint()).model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as e:
        raise _explain(e, source) from e
    return [sibling.rfilename for sibling in info.siblings or ()]


def _download(repo: str, revision: str, name: str, source: str) -> pathlib.Path:
    """One file, in the cache and verified."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        url = hf_hub_url(repo, name, revision=revision, endpoint=endpoint())
        about = get_hf_file_metadata(url, endpoint=endpoint())
        for part in (about.etag, about.commit_hash):  # both become names of files in the cache
            if not re.fullmatch(r"\w[\w.-]*", part or ""):
                raise UserError(f"{source!r}: the hub answers with {part!r} for a checksum; it was not fetched.")
        cache.check_size(source, about.size or 0)
        found = hf_hub_download(repo, name, revision=revision, endpoint=endpoint(), cache_dir=_cache())
    except UserError:
        raise
    except Exception as e:
        raise _explain(e, source) from e
    _verify(pathlib.Path(found), about.etag or "", source)
    return pathlib.Path(found)


def _explain(error: Exception, source: str) -> Exception:
    """What a failed request means: a sentence, or a ConnectionError that the cache may make up for."""
    from huggingface_hub import errors

    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{source!r} cannot be kept in the cache, {_cache()}: {error.strerror}.")
    status = getattr(getattr(error, "response", None), "status_code", None)
    where = endpoint()
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{source!r} cannot be the name of a repository; write hf://ORG/NAME.")
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return UserError(
            f"{source!r} may not be read: it is gated or private; accept its terms at {where} and set HF_TOKEN."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{source!r} does not exist: the repository has no such revision (branch, tag or commit).")
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return UserError(f"{source!r} changed while it was fetched (a file is gone); run the same command again.")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return UserError(
            f"{source!r} does not exist at {where}, or is private; check its spelling, or set HF_TOKEN to a token of "
            "one who may read it."
        )
    reason = (str(error) or type(error).__name__).strip().splitlines()[0][:160]
    return ConnectionError(f"{where} does not answer as it should: {reason}")


def _from_cache(repo: str, revision: str, file: str | None, source: str, problem: str) -> pathlib.Path:
    folder = _cache() / f"models--{repo.replace('/', '--')}"
    ref = folder / "refs" / revision
    snapshot = folder / "snapshots" / (ref.read_text().strip() if ref.is_file() else revision)
    names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    try:
        wanted = _wanted(names, file, source)
    except UserError:
        why = f"{source!r} cannot be fetched ({problem}) and is not in the cache; try again with a connection."
        raise UserError(why) from None
    log.warning("%s: %s; using %s of the cached revision %s.", source, problem, wanted[0], snapshot.name[:12])
    for name in wanted:
        path = snapshot / name
        _verify(path, pathlib.Path(os.readlink(path)).name if path.is_symlink() else "", source)
    return snapshot / wanted[0] if file else snapshot


def _verify(path: pathlib.Path, etag: str, source: str) -> None:
    """Compares a file with its checksum (SHA-256, or Git's SHA-1 of a blob); a wrong one leaves the cache."""
    with open(path, "rb") as f:
        if re.fullmatch(r"[0-9a-f]{64}", etag):
            found = hashlib.file_digest(f, "sha256").hexdigest()
        elif re.fullmatch(r"[0-9a-f]{40}", etag):
            size = os.fstat(f.fileno()).st_size
            digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            while chunk := f.read(2**20):
                digest.update(chunk)
            found = digest.hexdigest()
        else:
            log.warning("%s: no checksum is known of %s; it was not verified.", source, path.name)
            return
    if found == etag:
        return
    for link in (path, *_targets(path)):
        link.unlink(missing_ok=True)
    raise UserError(
        f"{source!r}: the checksum of {path.name} is wrong ({found[:12]}, not {etag[:12]}); it was removed: run the "
        "same command again."
    )


def _targets(path: pathlib.Path) -> list[pathlib.Path]:
    """What a link leads to, one after the other; all of it in the cache."""
    found: list[pathlib.Path] = []
    while path.is_symlink() and len(found) < 8:
        path = pathlib.Path(os.path.normpath(path.parent / os.readlink(path)))
        found.append(path)
    return [p for p in found if p.is_relative_to(_cache())]


def endpoint() -> str:
    """Where the hub is."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT") or constants.ENDPOINT


def _cache() -> pathlib.Path:
    """The cache's folder as the environment says now: the library remembers what it said on import."""
    from huggingface_hub import constants

    home = os.environ.get("HF_HOME")
    cache = os.environ.get("HF_HUB_CACHE") or (os.path.join(home, "hub") if home else constants.HF_HUB_CACHE)
    return pathlib.Path(os.path.expandvars(cache)).expanduser().resolve()


def _offline() -> bool:
    from huggingface_hub import is_offline_mode

    return is_offline_mode() or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
