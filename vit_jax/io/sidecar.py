"""The files beside weights that describe them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from vit_jax.io import jsonfile

About = Mapping[str, Any]
"""The files beside the weights: name -> content of a JSON file; of a tokenizer its path when read, bytes to write."""
JSON = ("config.json", "preprocessor_config.json", "open_clip_config.json", "tokenizer_config.json")
TOKENIZERS = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.model", "tokenizer.model")
"""What tokenizers are kept in; they are opened by those who need them."""
WANTED = "; expected an object with the model's fields"


def beside(path: pathlib.Path) -> About:
    """The files that belong to the weights at ``path``: a JSON of the same name, else those in its folder.

    Returns:
      Name -> content of those in :data:`JSON`, path of those in :data:`TOKENIZERS`.

    Raises:
      UserError: one of them is no JSON or too large.
    """
    own = path.with_suffix(".json")
    if own != path and own.is_file():  # the index of shards is no description
        about = jsonfile.read(own, WANTED)
        return about if any(name.endswith(".json") for name in about) else {"config.json": about}
    there = {name: path.with_name(name) for name in (*JSON, *TOKENIZERS) if path.with_name(name).is_file()}
    return {name: jsonfile.read(file, WANTED) if name in JSON else file for name, file in there.items()}
