"""The files beside weights that describe them, and the packages that are beside this one."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from vit_jax.convert.base import About
from vit_jax.types import UserError

MAX_JSON = 64 * 2**20
"""A larger description of a model is refused, in bytes."""
JSON = ("config.json", "preprocessor_config.json", "open_clip_config.json", "tokenizer_config.json")
TOKENIZERS = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.model", "tokenizer.model")
"""What tokenizers are kept in; they are opened by those who need them."""


def beside(path: pathlib.Path) -> About:
    """The files that belong to the weights at ``path``: a JSON of the same name, else those in its folder.

    Returns:
      Name -> content of those in :data:`JSON`, path of those in :data:`TOKENIZERS`.

    Raises:
      UserError: one of them is no JSON or too large.
    """
    own = path.with_suffix(".json")
    if own != path and own.is_file():  # the index of shards is no description
        about = _json(own)
        if isinstance(about, dict) and any(name.endswith(".json") for name in about):
            return about
        return {"config.json": about}
    there = {name: path.with_name(name) for name in (*JSON, *TOKENIZERS) if path.with_name(name).is_file()}
    return {name: _json(file) if name in JSON else file for name, file in there.items()}


def _json(path: pathlib.Path) -> Any:
    try:
        if path.stat().st_size > MAX_JSON:
            raise UserError(f"{path} is larger than {MAX_JSON >> 20} MiB, which no description of a model is.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise e if isinstance(e, UserError) else UserError(f"{path} is no readable JSON ({e}).") from e
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected an object with the model's fields.")
    return value


@contextlib.contextmanager
def packages(purpose: str) -> Iterator[None]:
    """Imports within it that fail become a sentence: those of the extra ``torch`` are nobody's duty to have.

    Raises:
      UserError: a package is not there, or cannot be imported, as a torchvision that was built for another PyTorch.
    """
    try:
        yield
    except (ImportError, RuntimeError) as e:
        reason = (str(e) or repr(e)).splitlines()[0]
        raise UserError(
            f"{purpose} takes packages that cannot be imported ({reason}): pip install 'vit_jax[torch]'."
        ) from e
