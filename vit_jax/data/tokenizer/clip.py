"""CLIP's byte-pair encoding (Radford et al. 2021, section 2.4), run by the `tokenizers` library.

Ids equal those of open_clip's ``SimpleTokenizer``, with one exception: a caption that spells ``<start_of_text>`` or
``<end_of_text>`` is tokenized as those characters, where open_clip lets it inject the special token and so cut itself.
(Which characters are letters and digits follows the library's Unicode tables: version 14, for the present one.)
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from vit_jax.config import lookup
from vit_jax.data.tokenizer.base import State, Stateful, content, field, options, pack, read, unpack, well_formed
from vit_jax.data.tokenizer.clean import CLEAN
from vit_jax.io import jsonfile
from vit_jax.io import text as texts
from vit_jax.types import UserError

NUM_MERGES = 49_152 - 256 - 2
"""CLIP uses that many lines of its vocabulary file, which holds 262,144: 49,408 tokens in all."""

MERGES = pathlib.Path(__file__).with_name("clip_merges.txt.gz")
"""Those lines, which come with this package."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_SUFFIX = "</w>"


class Clip(Stateful):
    """The vocabulary follows from the merges: 256 bytes, 256 bytes that end a word, one token a merge, start, end.

    Args:
      merges: the pairs to join, most frequent first, one ``"left right"`` a line.
      clean: a row of :data:`~vit_jax.data.tokenizer.clean.CLEAN`.

    Raises:
      UserError: these are no merges.
    """

    pad_id = 0

    def __init__(self, merges: str, clean: str = "lower"):
        self.merges, self.clean = merges, clean
        self._clean = lookup(CLEAN, clean, "clean")
        vocabulary = build_vocabulary(merges)
        self.vocab_size = len(vocabulary) + 2
        self.start_id, self.end_id = self.vocab_size - 2, self.vocab_size - 1
        self.library = _library(vocabulary, merges)

    @classmethod
    def open(cls, rest: str) -> Clip:
        """Of ``"PATH?clean=canonicalize"``; an empty path means CLIP's own vocabulary."""
        path, given = options(rest, ("clean",))
        return cls(read_merges(pathlib.Path(path).expanduser() if path else MERGES), **given)

    def ids(self, text: str) -> list[int]:
        return self.library.encode(well_formed(self._clean(text)), add_special_tokens=False).ids

    def text(self, ids: Sequence[int]) -> str:
        """Words apart by one blank, punctuation too: what was cleaned away does not come back."""
        known = [i for i in content(self, ids) if 0 <= i < self.start_id]
        return self.library.decode(known, skip_special_tokens=False).replace(_SUFFIX, " ").rstrip()

    def state(self) -> State:
        return {"kind": "clip", "data": pack(self.merges.encode()), "clean": self.clean}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Clip:
        return cls(_decode(unpack(field(state, "data", str)), "a tokenizer's state"), field(state, "clean", str))


def build_vocabulary(merges: str) -> dict[str, int]:
    """Token -> id of CLIP's layout, without start and end.

    Raises:
      UserError: a line is no pair, a pair joins what no earlier line made, or a token comes twice.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(alphabet + [a + _SUFFIX for a in alphabet])}
    for number, line in enumerate(merges.split("\n") if merges else (), 1):
        pair = line.split(" ")
        token = "".join(pair)
        if len(pair) != 2 or not all(p in vocabulary for p in pair) or token in vocabulary:
            raise UserError(
                f"merge {number} of CLIP's vocabulary is {line!r:.60}, not a new pair of earlier tokens; it is damaged "
                "or another tokenizer's (which json:PATH opens)."
            )
        vocabulary[token] = len(vocabulary)
    return vocabulary


def _library(vocabulary: dict[str, int], merges: str) -> tokenizers.Tokenizer:
    pairs = [(left, right) for left, _, right in (line.partition(" ") for line in merges.split("\n"))] if merges else []
    library = tokenizers.Tokenizer(models.BPE(vocabulary, pairs, end_of_word_suffix=_SUFFIX))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    return library


def read_merges(path: pathlib.Path) -> str:
    """The merges of OpenAI's file, of a ``merges.txt``, of a ``tokenizer.json``, or of a folder with one of the two.

    Raises:
      UserError: none of these, or one whose tokens are not numbered as CLIP's.
    """
    if path.is_dir():
        names = ("tokenizer.json", "merges.txt", "bpe_simple_vocab_16e6.txt.gz")
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise UserError(
                f"the folder {str(path)!r} holds none of {', '.join(names)}; name one with CLIP's vocabulary."
            )
        path = found[0]
    text = _decode(read(path), repr(str(path)))
    if text.lstrip()[:1] == "{" and path.suffix == ".json":
        merges, numbers = _from_json(text, path)
    else:
        lines = texts.lines(text)[: NUM_MERGES + 1]
        first = 1 if "#version" in lines[0] else 0
        merges, beside = "\n".join(lines[first : first + NUM_MERGES]), path.with_name("vocab.json")
        numbers = _json(_decode(read(beside), repr(str(beside))), beside) if beside.is_file() else None
    if numbers is not None:
        _check_numbers(build_vocabulary(merges), numbers, path)
    return merges


def _from_json(text: str, path: pathlib.Path) -> tuple[str, Any]:
    model = _json(text, path).get("model")
    merges, numbers = (model.get("merges"), model.get("vocab")) if isinstance(model, dict) else (None, None)
    if not isinstance(merges, list) or not isinstance(numbers, dict):
        raise UserError(f"{str(path)!r} holds no byte-pair encoding, so it is not CLIP's; open it with json:{path}.")
    return "\n".join(" ".join(map(str, m)) if isinstance(m, list) else str(m) for m in merges), numbers


def _check_numbers(vocabulary: Mapping[str, int], given: Mapping[str, Any], path: pathlib.Path) -> None:
    """A Hugging Face vocabulary must be ours, token by token; the two special ones go by any name."""
    specials = (len(vocabulary), len(vocabulary) + 1)
    wrong = [f"{token!r} is {given.get(token)}, not {i}" for token, i in vocabulary.items() if given.get(token) != i]
    wrong += [f"{token!r} is {i}" for token, i in given.items() if token not in vocabulary and i not in specials]
    if wrong:
        raise UserError(
            f"{str(path)!r} numbers its tokens in another way than CLIP ({wrong[0]}); open it with json:PATH."
        )


def _json(text: str, path: pathlib.Path) -> dict[str, Any]:
    return jsonfile.parse(text, dict, f"the vocabulary {str(path)!r}", "; expected an object")


def _decode(data: bytes, what: str) -> str:
    try:
        return texts.decode(data)
    except UnicodeDecodeError as e:
        raise UserError(
            f"the vocabulary of {what} is no UTF-8 (byte {e.start}); it is damaged or of another kind."
        ) from e
