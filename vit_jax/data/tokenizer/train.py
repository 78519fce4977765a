"""A vocabulary from one's own captions: byte-level pairs (Sennrich et al. 2016, on GPT-2's bytes)."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from vit_jax.data.sources.base import Source, Unreadable, valid_captions
from vit_jax.data.tokenizer.base import well_formed
from vit_jax.io import atomic
from vit_jax.types import UserError

SPECIAL = ("<pad>", "<s>", "</s>")
"""Ids 0, 1 and 2: padding, start, end."""
LEAST = 256 + len(SPECIAL)
MOST = 2**20


def train(captions: Iterable[str], vocab_size: int, *, lower: bool = False) -> str:
    """A JSON that ``json:FILE`` opens: the same for the same captions, in any order, on any machine.

    Args:
      captions: texts; every other text can be tokenized too, byte by byte where need be.
      vocab_size: tokens, the three special ones and the 256 bytes included. Few captions may not hold as many pairs
        that occur twice; the vocabulary is then smaller.
      lower: ignore case.

    Raises:
      UserError: ``vocab_size`` out of range.
    """
    if not LEAST <= vocab_size <= MOST:
        raise UserError(f"vocab_size={vocab_size} is out of range; {LEAST} (bytes and special tokens) to {MOST:,}.")
    library = tokenizers.Tokenizer(models.BPE())
    if lower:
        library.normalizer = normalizers.Lowercase()
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(map(well_formed, captions), trainer)
    return library.to_str(pretty=True)


def captions(source: Source, skipped: list[str]) -> Iterator[str]:
    """All captions of all examples; why an example could not be read goes to ``skipped``.

    Raises:
      UserError: there was not one caption.
    """
    for i in range(len(source)):
        try:
            yield from valid_captions(source[i])
        except Unreadable as e:
            skipped.append(str(e))
    if len(skipped) == len(source):
        raise UserError(f"no example has a readable caption: {skipped[0]}.")


def save(path: str, make: Callable[[], str]) -> None:
    """Writes what ``make`` returns to a new file, all of it or nothing.

    Raises:
      UserError: the file exists, which is found before the work is done, or cannot be written.
    """
    target = pathlib.Path(path).expanduser()
    if target.exists():
        raise UserError(f"{path!r} exists; remove it or name another file.")
    if not target.parent.is_dir():
        raise UserError(f"{path!r} cannot be written; there is no folder {str(target.parent)!r}.")
    text = make()
    try:
        atomic.write_text(target, text)
    except OSError as e:
        raise UserError(f"{path!r} cannot be written ({e.strerror}).") from e
