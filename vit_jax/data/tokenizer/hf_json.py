"""Any tokenizer that the Hugging Face `tokenizers` library stores as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence

import tokenizers

from vit_jax.config import lookup
from vit_jax.data.tokenizer.base import FromFile, content, options, read, well_formed
from vit_jax.io import jsonfile
from vit_jax.types import UserError

USUAL = {
    "start": ("<s>", "[CLS]", "<cls>", "<bos>", "<start_of_text>", "<|startoftext|>", "<|begin_of_text|>"),
    "end": ("</s>", "[SEP]", "<sep>", "<eos>", "<end_of_text>", "<|endoftext|>", "<|end_of_text|>"),
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|padding|>"),
}
"""Names under which a file's special tokens are recognised."""

_PROBE = "a \U0010ffff \u0007"


class Json(FromFile):
    """The file's normalisation, splitting and model; start, end and padding are added by the encoder.

    A special token's name spelled in a text is text. Dropout of merges, truncation and padding that the file may ask
    for are off: ids are a function of the text. ``clean`` comes before the file's own normalisation.
    """

    kind = "json"

    def _load(self) -> None:
        self.library, self.data = _load(self.data)
        self.vocab_size = _vocab_size(self.library)
        try:
            self.library.encode(_PROBE, add_special_tokens=False)
        except Exception as e:
            raise UserError(f"the tokenizers file cannot tokenize {_PROBE!a} ({e}); give it an unknown token.") from e

    @classmethod
    def open(cls, rest: str) -> Json:
        """Of ``"PATH"`` or ``"PATH?end=</s>&pad=<pad>&start=<s>&clean=canonicalize"``; ``start=`` means none."""
        path, given = options(rest, ("start", "end", "pad", "clean"))
        data = read(path)
        library, _ = _load(data, path)
        ids = {name: _special(library, name, given.get(name), path) for name in ("pad", "end", "start")}
        for name in ("end", "pad"):
            if ids[name] is None:
                raise UserError(
                    f"{path!r} has no special token with a usual name for {name!r} ({', '.join(USUAL[name])}); "
                    f"name it: json:{path}?{name}=TOKEN (padding may share the end's token)."
                )
        return cls(data, **{f"{k}_id": v for k, v in ids.items()}, clean=given.get("clean", "none"))  # type: ignore[arg-type]

    def ids(self, text: str) -> list[int]:
        return self.library.encode(well_formed(self._clean(text)), add_special_tokens=False).ids

    def text(self, ids: Sequence[int]) -> str:
        return self.library.decode([i for i in content(self, ids) if 0 <= i < self.vocab_size])


def _load(data: bytes, what: str = "a tokenizer's state") -> tuple[tokenizers.Tokenizer, bytes]:
    """The library's object and the canonical form of ``data``."""
    try:
        text = json.dumps(jsonfile.loads(data), sort_keys=True, separators=(",", ":"))
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as e:  # the library raises bare exceptions
        raise UserError(f"{what!r} is no JSON of the tokenizers library ({e}); is it tokenizer.json?") from e
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    if getattr(library.model, "dropout", None) is not None:
        library.model.dropout = None
    return library, text.encode()


def _vocab_size(library: tokenizers.Tokenizer) -> int:
    ids = library.get_vocab(with_added_tokens=True).values()
    size = max(ids, default=-1) + 1
    if not 1 <= size <= 2 * len(ids):
        raise UserError(
            f"a tokenizers file has {len(ids):,} tokens, but the largest id is {size - 1:,}; it is damaged."
        )
    return size


def _special(library: tokenizers.Tokenizer, name: str, given: str | None, path: str) -> int | None:
    """The id of the token called ``given``, or else of the one special token with a usual name."""
    if given == "" and name == "start":
        return None
    if given is not None:
        return lookup(library.get_vocab(with_added_tokens=True), given, f"{name} token of {path!r}:")
    special = {t.content: i for i, t in library.get_added_tokens_decoder().items() if t.special}
    found = [token for token in USUAL[name] if token in special]
    if len(found) > 1:
        raise UserError(
            f"{path!r} has several tokens for {name!r}: {', '.join(found)}; choose: json:{path}?{name}=TOKEN."
        )
    return special[found[0]] if found else None
