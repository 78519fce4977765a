"""Weights and their card in one folder, and from there to the hub in one commit."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from vit_jax import models
from vit_jax.config import lookup
from vit_jax.convert import read, write
from vit_jax.convert.pretrained import Pretrained, Stored
from vit_jax.io import atomic, hub
from vit_jax.publish import card, public
from vit_jax.types import UsageError, UserError

CARD = "README.md"
COMMITTED = "commit_success.txt"
"""What orbax leaves beside arrays: the folder that they were written to, and nothing that is read again."""


@dataclasses.dataclass(frozen=True)
class Pushed:
    """What was written, and where it is.

    Attributes:
      repo: ``"ORG/NAME"``.
      card: the text of its ``README.md``.
      files: name -> bytes of what is in the repository by this.
      url: of the commit; None where nothing was uploaded.
      notes: one human-readable note per thing that the format cannot say.
    """

    repo: str
    card: str
    files: dict[str, int]
    url: str | None = None
    notes: tuple[str, ...] = ()


def push(
    source: Pretrained | str | os.PathLike[str],
    target: str,
    *,
    to: str | None = None,
    private: bool = False,
    license: str = card.UNKNOWN,
    datasets: Sequence[str] = (),
    dry_run: bool = False,
    card_only: str | os.PathLike[str] | None = None,
) -> Pushed:
    """Publishes weights with a model card on the Hugging Face hub, in one commit.

    The card has the metadata that the hub reads and tells classes, images, training, evaluation and where the code was
    from; of paths it tells the last name, and so do the files beside the weights.

    Args:
      source: a model in memory, or a place.
      target: ``"hf://ORG/NAME"``, made if there is no such repository.
      to: ``"timm"``, ``"hf"``, ``"open_clip"`` or ``"vit_jax"``; None is timm for images alone, open_clip for
        image-text models.
      private: whether only its owners see a repository that is made.
      license: of the weights, as the hub spells it.
      datasets: ``"ORG/NAME"`` on the hub of what it was trained on.
      dry_run: make the files and the card, and upload nothing.
      card_only: a folder: write ``README.md`` there, and upload nothing.

    Returns:
      The card, the files with their sizes, and the address of the commit.

    Raises:
      UserError: the format cannot express the model; no token, or one that may not write there; no connection.

    Example:
      >>> vj.push("runs/digits", "hf://me/digits", license="apache-2.0").url
      'https://huggingface.co/me/digits/commit/...'
    """
    repo = repository(target)
    with contextlib.ExitStack() as stack:
        if isinstance(source, Pretrained):
            stored = source.stored()
        else:
            stored = stack.enter_context(read.load(os.fspath(source)))
        folder, made = stack.enter_context(prepared(stored, repo, to, license, tuple(datasets)))
        if card_only is not None:
            written = pathlib.Path(card_only) / CARD
            with atomic.writing(str(written)):
                written.parent.mkdir(parents=True, exist_ok=True)
                atomic.write_text(written, made.card)
        if dry_run or card_only is not None:
            return made
        return upload(folder, made, private)


def repository(target: str) -> str:
    """``"ORG/NAME"`` of ``hf://ORG/NAME``.

    Raises:
      UsageError: it is something else.
    """
    if not target.startswith("hf://"):
        raise UsageError(f"{target!r} is no repository of the hub; write hf://ORG/NAME.")
    repo, revision, file = hub.address(target)
    if file or revision != "main":
        raise UsageError(f"{target!r} names more than a repository; write hf://{repo}.")
    return repo


def format_of(stored: Stored, to: str | None) -> str:
    """``to``, by default what most would load it with."""
    if to is None:
        return "open_clip" if isinstance(stored.model, models.ImageTextModel) else "timm"
    lookup(card.LIBRARIES, to, "format to publish")
    return to


@contextlib.contextmanager
def prepared(
    stored: Stored, repo: str, to: str | None, license: str, datasets: tuple[str, ...]
) -> Iterator[tuple[pathlib.Path, Pushed]]:
    """A folder with the weights and their card, which is gone afterwards.

    Raises:
      UserError: the format cannot express the model; the disk is full.
    """
    to, license = format_of(stored, to), card.license_name(license)
    for name in datasets:
        hub.address(f"hf://{name}")
    metrics, step = card.evaluation(stored.source)
    told = public.stored(stored)
    with tempfile.TemporaryDirectory(prefix="vit_jax_push") as scratch:
        folder = pathlib.Path(scratch) / "model"
        notes = tuple(write.save(told, folder, to))
        about = card.About(repo, to, told, metrics, step, license, datasets, notes)
        text = card.text(about)
        with atomic.writing("the card"):
            atomic.write_text(folder / CARD, text)
        paths = [pathlib.Path(where) / name for where, _, names in os.walk(folder) for name in names]
        for path in paths:
            if path.name == COMMITTED:
                path.unlink()
        files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(paths) if p.name != COMMITTED}
        yield folder, Pushed(repo, text, files, notes=notes)


def upload(folder: pathlib.Path, made: Pushed, private: bool) -> Pushed:
    """Has the hub look at the card, makes the repository where there is none, and commits the folder to it.

    Raises:
      UserError: there is no token, or one that may not write there; the hub refuses the card, or does not answer.
    """
    from huggingface_hub import HfApi, ModelCard, get_token

    if not get_token():
        raise UserError(
            "there is no token of the hub, which uploads take; run: hf auth login, or set HF_TOKEN (not for --dry_run)."
        )
    api = HfApi(endpoint=hub.endpoint())
    with _said(made.repo):
        ModelCard(made.card).validate()
        api.create_repo(made.repo, private=private or None, exist_ok=True)
        if private and not api.model_info(made.repo).private:
            raise UserError(f"{made.repo} exists and is public; make it private there, or leave --private out.")
        done = api.upload_folder(
            repo_id=made.repo, folder_path=folder, commit_message="Weights and card, written by vit_jax"
        )
    return dataclasses.replace(made, url=str(done.commit_url))


@contextlib.contextmanager
def _said(repo: str) -> Iterator[None]:
    """Errors of the hub as sentences."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # of many kinds: of HTTP, of the network, of the validator
        raise _sentence(e, repo) from e


def _sentence(error: Exception, repo: str) -> UserError:
    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    reason = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
    if status in (401, 403):
        return UserError(
            f"the token may not write to {repo} at {hub.endpoint()} (status {status}); run: hf auth login with a token "
            "that may, or name a repository of your own."
        )
    if isinstance(error, ValueError) and status is None:
        return UserError(f"the hub does not take {repo} with this card: {reason}.")
    return UserError(f"{hub.endpoint()} does not answer as it should ({reason}); nothing is lost: run it again.")
