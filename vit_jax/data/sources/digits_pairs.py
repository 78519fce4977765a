"""``digits_pairs[:phrasings]``: images of one or two of the ``digits`` scans in colours, with captions that say so.

A glyph is a digit in one of five inks, the plain one unnamed; a composition is one glyph, or an ordered pair side by
side or one above the other: 50 + 2 * 50 * 50 = 5,050. Training has 65,536 examples: every eighth is a single glyph,
each of the 50 about 164 times; the others are 4,488 of the pairs, 12 or 13 times each. An image has six captions. The
512 held-out examples are the other 512 pairs, once each, of the 360 scans that are held out of ``digits``; their
captions are three wordings never seen in training, of words that were. ``digits_pairs:phrasings`` gives them the six
wordings of training instead: what a captioner may rightly say. Example i is a pure function of i, made when read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from vit_jax.config import suggest
from vit_jax.data.permute import hash64, make_key, permute
from vit_jax.data.sources.base import Info, Record, Source, digest
from vit_jax.data.sources.digits import Digits, open_digits
from vit_jax.types import UserError

EXAMPLES, HELD_OUT, SEED = 65_536, 512, 0
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INKS = {
    "": (255, 255, 255),
    "red": (255, 64, 64),
    "green": (64, 255, 64),
    "blue": (64, 64, 255),
    "yellow": (255, 255, 64),
}
Layout = Literal["one", "beside", "above"]
PHRASINGS: dict[Layout, tuple[str, ...]] = {
    "one": ("{an_a}", "{a}", "the {a}", "{an_n}", "{n}", "the {d}"),
    "beside": (
        "{an_a} to the left of {an_b}",
        "{an_b} to the right of {an_a}",
        "{a} left of {b}",
        "{b} right of {a}",
        "the {a} is left of the {b}",
        "the {b} is right of the {a}",
    ),
    "above": (
        "{an_a} above {an_b}",
        "{an_b} below {an_a}",
        "{a} on top of {b}",
        "{b} under {a}",
        "the {a} is above the {b}",
        "the {b} is below the {a}",
    ),
}
"""``a`` is the first glyph ("red three"), ``b`` the second, ``an_a`` the first with its article; ``n`` and ``d`` are
the first in figures ("red 3", "red digit 3")."""
HELD_OUT_PHRASINGS: dict[Layout, tuple[str, ...]] = {
    "beside": ("{an_a} is to the left of {an_b}", "{an_b} right of {an_a}", "{b} to the right of {a}"),
    "above": ("{an_a} is above {an_b}", "{an_b} under {an_a}", "{b} below {a}"),
}
_SIDE = 8  # of a scan; two lie on a square of twice that
_GLYPHS = len(INKS) * 10
_PAIRS = 2 * _GLYPHS**2


class Glyph(NamedTuple):
    """A digit in an ink of :data:`INKS`."""

    digit: int
    ink: str = ""


class Composition(NamedTuple):
    """``glyphs``: one, or left and right (``"beside"``), or upper and lower (``"above"``)."""

    layout: Layout
    glyphs: tuple[Glyph, ...]


def single(i: int) -> Composition:
    """The composition of glyph number ``i`` < 50 alone."""
    return Composition("one", (Glyph(i % 10, tuple(INKS)[i // 10]),))


def pair(i: int) -> Composition:
    """Pair number ``i`` < 5,000."""
    layout, both = divmod(i, _GLYPHS**2)
    first, second = (single(g).glyphs[0] for g in divmod(both, _GLYPHS))
    return Composition("above" if layout else "beside", (first, second))


def phrase(composition: Composition, wordings: dict[Layout, tuple[str, ...]] = PHRASINGS) -> tuple[str, ...]:
    """The captions of a composition, one for each wording."""
    first, second = composition.glyphs[0], composition.glyphs[-1]
    words = {
        "a": _noun(first.ink, WORDS[first.digit]),
        "b": _noun(second.ink, WORDS[second.digit]),
        "n": _noun(first.ink, str(first.digit)),
        "d": _noun(first.ink, f"digit {first.digit}"),
    }
    words |= {f"an_{key}": f"{'an' if noun[0] in 'e8' else 'a'} {noun}" for key, noun in words.items()}
    return tuple(wording.format(**words) for wording in wordings[composition.layout])


def compose(composition: Composition, scans: Sequence[np.ndarray], shifts: Sequence[int] = (0, 0)) -> np.ndarray:
    """Draws a composition.

    Args:
      composition: what to draw.
      scans: one uint8[8, 8] for each glyph, white on black.
      shifts: in -2..2, how far each glyph of a pair lies off the middle, across the direction in which they follow.

    Returns:
      uint8[16, 16, 3]; of a single glyph its scan as it is, uint8[8, 8, 3], enlarged by the loader as ``digits`` are.
    """
    painted = [_paint(scan, glyph.ink) for scan, glyph in zip(scans, composition.glyphs, strict=True)]
    if composition.layout == "one":
        return painted[0]
    canvas = np.zeros((2 * _SIDE, 2 * _SIDE, 3), np.uint8)
    for k, (glyph, shift) in enumerate(zip(painted, shifts, strict=True)):
        along, across = k * _SIDE, _SIDE // 2 + shift
        top, left = (across, along) if composition.layout == "beside" else (along, across)
        canvas[top : top + _SIDE, left : left + _SIDE] = glyph
    return canvas


class DigitsPairs:
    """One split; ``info.captions`` is 6 with the wordings of training and 3 with the held-out ones."""

    def __init__(self, split: str, wordings: dict[Layout, tuple[str, ...]]):
        scans = open_digits("", split, holdout=HELD_OUT, seed=SEED)
        digits, kept = scans.source, scans.indices  # type: ignore[attr-defined]
        assert isinstance(digits, Digits)
        self.scans = [digits.images[kept[digits.labels[kept] == d], :, :, 0] for d in range(10)]
        self.train, self.wordings = split == "train", wordings
        order = permute(np.arange(_PAIRS), _PAIRS, make_key(SEED))
        self.pairs = order[HELD_OUT:] if self.train else order[:HELD_OUT]
        known = digest(*self.scans, self.pairs, *(texts for _, texts in sorted(wordings.items())))
        self.info = Info((), EXAMPLES if self.train else HELD_OUT, captions=len(wordings["beside"]), digest=known)

    def __len__(self) -> int:
        return self.info.num_examples

    def composition(self, i: int) -> Composition:
        """What example ``i`` shows."""
        if self.train and i % 8 == 7:
            return single(i // 8 % _GLYPHS)
        return pair(int(self.pairs[(i - i // 8 if self.train else i) % len(self.pairs)]))

    def __getitem__(self, i: int) -> Record:
        if not 0 <= i < len(self):
            raise IndexError(i)
        composition = self.composition(i)
        numbers = hash64(np.arange(4, dtype=np.uint64) ^ np.uint64(make_key(SEED, self.train, i)))
        choices = [self.scans[g.digit] for g in composition.glyphs]
        scans = [own[int(n) % len(own)] for own, n in zip(choices, numbers, strict=False)]
        image = compose(composition, scans, [int(n % np.uint64(5)) - 2 for n in numbers[2:]])
        return {
            "image": image,
            "label": 0,
            "name": f"digits_pairs[{i}]",
            "captions": phrase(composition, self.wordings),
        }


def open_digits_pairs(rest: str, split: str, *, holdout: float | int, seed: int) -> Source:
    """The examples to train on or those held out; always the same ones, whatever ``holdout`` and ``seed`` say."""
    del holdout, seed
    if rest not in ("", "phrasings"):
        raise UserError(
            f"source 'digits_pairs:{rest}' is unknown{suggest(rest, ['phrasings'])} Write 'digits_pairs' or "
            "'digits_pairs:phrasings'."
        )
    return DigitsPairs(split, PHRASINGS if split == "train" or rest else HELD_OUT_PHRASINGS)


def _noun(ink: str, name: str) -> str:
    return f"{ink} {name}" if ink else name


def _paint(scan: np.ndarray, ink: str) -> np.ndarray:
    return (scan[..., None].astype(np.uint16) * np.array(INKS[ink], np.uint16) // 255).astype(np.uint8)
