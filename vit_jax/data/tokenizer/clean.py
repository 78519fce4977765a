"""What is done to a text before it is tokenized. Part of the tokenizer: a model sees only cleaned text."""

from __future__ import annotations

import html
import string
from collections.abc import Callable

import ftfy

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def fix(text: str) -> str:
    """Mojibake repaired (ftfy), HTML entities resolved twice, white space collapsed.

    Printable ASCII without ``&`` holds nothing to repair and skips the slow part.
    """
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def lower(text: str) -> str:
    """:func:`fix` and lower case: CLIP's convention."""
    return fix(text).lower()


def canonicalize(text: str) -> str:
    """:func:`fix`, underscores to blanks, ASCII punctuation removed, lower case: SigLIP's convention (big_vision)."""
    text = fix(text).replace("_", " ").translate(_NO_PUNCTUATION).lower()
    return " ".join(text.split())


CLEAN: dict[str, Callable[[str], str]] = {"none": str, "whitespace": fix, "lower": lower, "canonicalize": canonicalize}
"""By the names that open_clip gives them; ``none`` leaves a text alone."""
