"""Caption metrics: CIDEr-D, BLEU-4, ROUGE-L and exact match, as ``pycocoevalcap`` defines them, without Java.

Each takes N candidates and, for each, the references of its image. A score is comparable with a published one only on
the same images (CIDEr-D takes its document frequencies from them) and as far as :func:`tokenize` agrees with the
original's tokenizer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.types import UserError

Tokenize = Callable[[str], Sequence[str]]
NGram = tuple[str, ...]

ORDER = 4
"""CIDEr-D and BLEU count n-grams of 1 to this many words."""
SIGMA = 6.0
"""Width in words of CIDEr-D's penalty on a difference of lengths."""
BETA = 1.2
"""Weight of recall against precision in ROUGE-L."""

_UNIFY = str.maketrans({"’": "'", "‘": "`", "“": '"', "”": '"', "…": ".", "–": "-", "—": "-", "£": "#", "€": "$"})
_BRACKETS = dict(zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True))
_DROPPED = frozenset("\"'`.?!,:;-")
_SPLIT = re.compile(
    r"""(?<=\w)(?= n't(?!\w) | '(?:s|re|ve|ll|d|m)(?!\w) )             # do|n't, man|'s
    | (?<=\bcan)(?=not\b) | (?<=\b(?:gon|wan))(?=na\b) | (?<=\bgot)(?=ta\b) | (?<=\b(?:gim|lem))(?=me\b)""",
    re.VERBOSE,
)
_TOKEN = re.compile(
    r"""https?://\S+ | [^\s@]+@[^\s@]+\.\w+                           # addresses
    | (?:[a-z]\.){2,} | (?:mr|mrs|ms|dr|st|jr|sr|vs|etc|ft)\. | no\.(?=\s*\d)   # the full stop belongs to these
    | n't(?!\w) | '(?:s|re|ve|ll|d|m|n'|\d0s)(?!\w)
    | \d+(?:[,:]\d+)+(?:\.\d+)?                                       # 1,000.50 and 10:30
    | [^\W_]+(?:[-./_][^\W_]+|(?<=[^\W\d_])'[^\W\d_]+)*                # well-known, and/or, 3.5, o'clock
    | [!?]{2,} | \S""",
    re.VERBOSE,
)


class Scores(NamedTuple):
    """A metric of a corpus of N images."""

    value: float
    """Of the corpus; the mean of ``each``, except for BLEU."""
    each: np.ndarray
    """float64[N], one per image."""


def tokenize(text: str) -> list[str]:
    """Words as PTBTokenizer of Stanford CoreNLP 3.4.1 with ``-lowerCase`` and pycocoevalcap's list of punctuation do.

    Lower case; contractions are two words (``do n't``, ``man 's``, ``can not``, ``gon na``); hyphens, slashes and full
    stops inside a word stay. Quotes and ``. ? ! , : - ;`` are dropped. As with the original, whose list is in upper
    case while its tokens are not, brackets stay as ``-lrb-`` and so on, and so do ``!!`` and other runs of ``! ?``.

    Unlike the original this knows few abbreviations (another one loses its full stop), no SGML tags, no ``c++``, and
    none of the rarer contractions (``'tis``, ``y'all``, ``more'n``, ``rock'n'roll``); it takes ``#tag`` and ``@user``
    apart, which the original keeps whole, and leaves ``½``, which the original spells ``1/2``; it keeps characters
    outside the basic plane, such as emoji, which the original drops.
    """
    text = _SPLIT.sub(" ", text.lower().translate(_UNIFY))
    return [_BRACKETS.get(token, token) for token in _TOKEN.findall(text) if token not in _DROPPED]


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = tokenize) -> Scores:
    """CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726, section 7): 10 is a perfect match; papers print 100 times this.

    tf-idf vectors of n-grams, term frequencies not normalised, document frequencies counted over the IMAGES given here:
    the score depends on which images are evaluated together, and is 0 for a single one (log 1).

    Args:
      candidates: N captions.
      references: N sequences of at least one caption each.
      tokenize: text to words.

    Raises:
      UserError: nothing to score, or an image without reference; so do all metrics here.
    """
    pairs = _words(candidates, references, tokenize)
    cooked = [(_ngrams(c), [_ngrams(r) for r in refs]) for c, refs in pairs]
    frequency = Counter(gram for _, refs in cooked for gram in set().union(*refs))
    total = math.log(len(cooked))

    def vector(counts: Counter[NGram]) -> tuple[dict[NGram, float], np.ndarray, int]:
        """Weights, their norm for each n, and the length: the number of bigrams, as in the original."""
        weights = {gram: tf * (total - math.log(max(1, frequency[gram]))) for gram, tf in counts.items()}
        squares = np.zeros(ORDER)
        for gram, weight in weights.items():
            squares[len(gram) - 1] += weight**2
        return weights, np.sqrt(squares), sum(tf for gram, tf in counts.items() if len(gram) == 2)

    def score(candidate: Counter[NGram], refs: list[Counter[NGram]]) -> float:
        mine, norm, length = vector(candidate)
        similarities = []
        for other, other_norm, other_length in map(vector, refs):
            products, norms = np.zeros(ORDER), norm * other_norm
            for gram in mine.keys() & other.keys():
                products[len(gram) - 1] += min(mine[gram], other[gram]) * other[gram]
            cosines = np.divide(products, norms, out=np.zeros(ORDER), where=norms > 0)
            similarities.append(cosines.mean() * math.exp(-((length - other_length) ** 2) / (2 * SIGMA**2)))
        return 10 * float(np.mean(similarities))

    return _mean(score(c, refs) for c, refs in cooked)


def bleu4(candidates: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = tokenize) -> Scores:
    """BLEU-4 of the corpus (Papineni et al. 2002) in [0, 1]: matches and lengths are summed over images, then combined.

    Counts are clipped by the most that one reference has; the reference length is the closest, the shorter of two.
    Arguments as for :func:`cider_d`. ``each`` has the same formula for one image, nearly 0 without a common 4-gram.
    """
    counts = np.array([_matches(c, refs) for c, refs in _words(candidates, references, tokenize)])
    return Scores(_bleu(counts.sum(0)), np.array([_bleu(row) for row in counts]))


def _matches(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> list[int]:
    """Clipped matches of n-grams for n = 1 to 4, their numbers in the candidate, its length and the reference's."""
    most: Counter[NGram] = Counter()
    for reference in references:
        most |= _ngrams(reference)
    correct, length = [0] * ORDER, len(candidate)
    for gram, count in (_ngrams(candidate) & most).items():
        correct[len(gram) - 1] += count
    closest = min((abs(len(r) - length), len(r)) for r in references)[1]
    return [*correct, *(max(0, length - n) for n in range(ORDER)), length, closest]


def _bleu(counts: np.ndarray) -> float:
    """From the sums of :func:`_matches`; the epsilons are the original's."""
    correct, guess, (length, reference) = counts[:ORDER], counts[ORDER : 2 * ORDER], counts[2 * ORDER :]
    precision = math.prod((correct + 1e-15) / (guess + 1e-9)) ** (1 / ORDER)
    ratio = (length + 1e-15) / (reference + 1e-9)
    return float(precision * math.exp(min(0.0, 1 - 1 / ratio)))


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = tokenize) -> Scores:
    """ROUGE-L (Lin 2004, section 3) in [0, 1], the mean over images of F with beta 1.2.

    As in the original, the best precision and the best recall may come from different references. Arguments as for
    :func:`cider_d`.
    """

    def score(candidate: Sequence[str], refs: Sequence[Sequence[str]]) -> float:
        c, rs = candidate or [""], [r or [""] for r in refs]  # "".split(" ") has one word, in the original
        common = [_common(c, r) for r in rs]
        p, r = max(common) / len(c), max(n / len(r) for n, r in zip(common, rs, strict=True))
        return (1 + BETA**2) * p * r / (r + BETA**2 * p) if p else 0.0

    return _mean(score(c, refs) for c, refs in _words(candidates, references, tokenize))


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def exact_match(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = tokenize
) -> Scores:
    """Share of candidates with the same words as one of their references. Arguments as for :func:`cider_d`."""
    return _mean(float(c in refs) for c, refs in _words(candidates, references, tokenize))


CAPTION_METRICS: dict[str, Callable[..., Scores]] = {
    "cider_d": cider_d,
    "bleu4": bleu4,
    "rouge_l": rouge_l,
    "exact_match": exact_match,
}


def _words(
    candidates: Sequence[str], references: Sequence[Sequence[str]], tokenize: Tokenize
) -> list[tuple[list[str], list[list[str]]]]:
    assert not isinstance(candidates, str) and not any(isinstance(refs, str) for refs in references)
    if not candidates or not all(references):
        raise UserError(
            f"captions cannot be scored: {len(candidates)} candidates, {sum(not r for r in references)} of them without"
            " reference; give at least one reference for each image."
        )
    pairs = zip(candidates, references, strict=True)
    return [(list(tokenize(c)), [list(tokenize(r)) for r in refs]) for c, refs in pairs]


def _ngrams(words: Sequence[str]) -> Counter[NGram]:
    """How often each n-gram of 1 to 4 words occurs."""
    return Counter(tuple(words[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(words) - n + 1))


def _mean(each: Iterable[float]) -> Scores:
    values = np.array(list(each), np.float64)
    return Scores(float(values.mean()), values)
