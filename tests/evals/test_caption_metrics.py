"""Caption metrics against pycocoevalcap's numbers, against the formulas written out, and against closed forms."""

import itertools
import math

import numpy as np
import pytest

from vit_jax.evals import caption_metrics
from vit_jax.evals.caption_metrics import CAPTION_METRICS, bleu4, cider_d, exact_match, rouge_l, tokenize
from vit_jax.types import UserError

CANDIDATES = (
    "a man riding a wave on top of a surfboard",
    "two dogs",
    "",
    "cat",
    "a red bus parked on the side of the street next to a tall building",
    "a a a a a",
    "a plate of food with broccoli and rice",
)
REFERENCES = (
    ("a man on a surfboard riding a wave", "a surfer riding a wave in the ocean", "a man surfing on top of a wave"),
    ("two dogs playing in the grass with a red ball",),
    ("an empty street at night", "a street"),
    ("cat", "a cat sitting on a chair"),
    ("a red bus parked on the side of the street next to a tall building", "a double decker bus"),
    ("a man", "a dog and a cat and a bird", "the end"),
    ("a plate of rice and broccoli", "a white plate of food", "food with broccoli and rice on a plate", "lunch"),
)
PINNED = {
    "cider_d": (
        1.987274496444542,
        (3.2024869214069556, 0.9452161820771726, 0.0, 1.609861164286127, 5.0462941930501515, 0.0, 3.1070630142913878),
    ),
    "bleu4": (
        0.6648809992726328,
        (0.451801001750823, 1.831563887270805e-05, 0.0, 3.162277656215536e-05, 0.9999999998587455,
         2.2360679767823846e-12, 0.75983568543608),
    ),
    "rouge_l": (
        0.6045946176712004,
        (0.6802973977695167, 0.2975609756097561, 0.0, 1.0, 1.0, 0.5366568914956013, 0.7176470588235294),
    ),
}  # fmt: skip
"""pycocoevalcap 1.2: ``Cider()``, ``Bleu(4)`` and ``Rouge()`` of these captions, without its tokenizer."""


@pytest.mark.parametrize("name", PINNED)
def test_pycocoevalcap_gives_these_numbers(name: str) -> None:
    value, each = PINNED[name]
    got = CAPTION_METRICS[name](CANDIDATES, REFERENCES)
    np.testing.assert_allclose(got.value, value, rtol=1e-12)
    np.testing.assert_allclose(got.each, each, rtol=1e-11, atol=1e-300)


def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def cider_by_formula(candidates: list[list[str]], references: list[list[list[str]]]) -> np.ndarray:
    """Vedantam et al. 2015, section 7, with dense vectors over all n-grams."""
    scores = np.zeros((len(candidates), 4))
    for n in (1, 2, 3, 4):
        everything = [*candidates, *itertools.chain(*references)]
        vocabulary = sorted({g for words in everything for g in grams(words, n)})
        if not vocabulary:
            continue
        images = [{g for r in refs for g in grams(r, n)} for refs in references]
        df = np.array([sum(g in image for image in images) for g in vocabulary])
        idf = np.log(len(candidates) / np.maximum(df, 1))

        def vector(words: list[str], n: int = n, vocabulary: list = vocabulary, idf: np.ndarray = idf) -> np.ndarray:
            return np.array([grams(words, n).count(g) for g in vocabulary]) * idf

        for i, (c, refs) in enumerate(zip(candidates, references, strict=True)):
            for r in refs:
                a, b = vector(c), vector(r)
                norms = np.sqrt(a @ a) * np.sqrt(b @ b)
                cosine = np.minimum(a, b) @ b / norms if norms else 0.0
                # lengths are numbers of bigrams: one less than words, but 0 for no word as for one
                gap = max(len(c) - 1, 0) - max(len(r) - 1, 0)
                scores[i, n - 1] += cosine * math.exp(-(gap**2) / 72) / len(refs)
    return 10 * scores.mean(1)


def bleu_by_formula(candidates: list[list[str]], references: list[list[list[str]]]) -> float:
    matched, made, length, target = np.zeros(4), np.zeros(4), 0, 0
    for c, refs in zip(candidates, references, strict=True):
        for n in (1, 2, 3, 4):
            mine = grams(c, n)
            made[n - 1] += len(mine)
            matched[n - 1] += sum(min(mine.count(g), max(grams(r, n).count(g) for r in refs)) for g in set(mine))
        length += len(c)
        target += sorted((len(r) for r in refs), key=lambda size, c=c: (abs(size - len(c)), size))[0]  # type: ignore[misc]
    brevity = 1.0 if length >= target else math.exp(1 - target / length)
    return brevity * math.exp(np.mean(np.log(matched / made)))


def lcs(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + lcs(a[1:], b[1:])
    return max(lcs(a[1:], b), lcs(a, b[1:]))


def rouge_by_formula(c: list[str], refs: list[list[str]]) -> float:
    p, r = (max(lcs(c, ref) / len(x) for ref in refs for x in ((c,) if which else (ref,))) for which in (True, False))
    return 2.44 * p * r / (r + 1.44 * p) if p else 0.0


def sentences(rng: np.random.Generator, images: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Few words, so that n-grams repeat; 1 to 4 references of 1 to 9 words."""
    words = list("abc")
    some = lambda: rng.choice(words, rng.integers(1, 10)).tolist()  # noqa: E731
    return [some() for _ in range(images)], [[some() for _ in range(rng.integers(1, 5))] for _ in range(images)]


@pytest.mark.parametrize("seed", range(4))
def test_against_the_formulas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidates, references = sentences(rng, 13)
    text = [" ".join(c) for c in candidates], [[" ".join(r) for r in refs] for refs in references]
    plain = {"tokenize": str.split}
    got = cider_d(*text, **plain)
    np.testing.assert_allclose(got.each, cider_by_formula(candidates, references), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(got.value, got.each.mean(), rtol=1e-12)
    np.testing.assert_allclose(bleu4(*text, **plain).value, bleu_by_formula(candidates, references), rtol=1e-7)
    want = [rouge_by_formula(c, refs) for c, refs in zip(candidates, references, strict=True)]
    np.testing.assert_allclose(rouge_l(*text, **plain).each, want, rtol=1e-12)
    exact = [float(c in refs) for c, refs in zip(candidates, references, strict=True)]
    assert exact_match(*text, **plain).each.tolist() == exact


def test_order_of_images_and_references_does_not_matter(rng: np.random.Generator) -> None:
    candidates, references = list(CANDIDATES), [list(refs) for refs in REFERENCES]
    order = rng.permutation(len(candidates))
    shuffled = [candidates[i] for i in order], [references[i][::-1] for i in order]
    for metric in CAPTION_METRICS.values():
        a, b = metric(candidates, references), metric(*shuffled)
        np.testing.assert_allclose(b.value, a.value, rtol=1e-12)
        np.testing.assert_allclose(b.each, a.each[order], rtol=1e-12)


def test_cider_by_hand() -> None:
    """Two images without a common word: every idf is log 2, a copy is 10, half of a repeated word is clipped."""
    references = [["a b c d"], ["p q r s"]]
    assert cider_d(["a b c d", "p q r s"], references).each == pytest.approx([10, 10])
    assert cider_d(["p q r s", "a b c d"], references).value == 0
    # "x x" against "x x x x": unigram cosine min(2, 4) * 4 / (2 * 4) = 1, bigram 1 * 3 / (1 * 3) = 1, no longer ones
    got = cider_d(["x x", "p q r s"], [["x x x x"], ["p q r s"]]).each[0]
    assert got == pytest.approx(10 * (1 + 1) / 4 * math.exp(-(2**2) / 72))
    # the other way round it is clipped: min(4, 2) * 2 / (4 * 2) = 1/2 and min(3, 1) * 1 / (3 * 1) = 1/3
    got = cider_d(["x x x x", "p q r s"], [["x x"], ["p q r s"]]).each[0]
    assert got == pytest.approx(10 * (1 / 2 + 1 / 3) / 4 * math.exp(-(2**2) / 72))


def test_cider_counts_images_not_captions() -> None:
    """A word in all captions of one image of three has df 1, in one caption of each image df 3: worth nothing."""
    references = [["cat here", "cat there"], ["dog here", "bee"], ["eel here", "fly"]]
    got = cider_d(["here", "dog", "eel"], references)
    assert got.each[0] == 0 and got.each[1] > 0
    assert cider_d(["cat", "dog", "eel"], references).each[0] > 0


def test_cider_of_a_single_image_is_zero() -> None:
    assert cider_d(["a cat"], [["a cat"]]).value == 0  # its document frequencies say that no word is informative


def test_bleu_is_of_the_corpus_and_not_a_mean() -> None:
    candidates, references = ["a b c d e", "v w x y z"], [["a b c d e"], ["1 2 3 4 5"]]
    got = bleu4(candidates, references)
    assert got.value == pytest.approx((5 / 10 * 4 / 8 * 3 / 6 * 2 / 4) ** 0.25, rel=1e-6)
    assert got.each == pytest.approx([1, 0], abs=1e-5)


def test_bleu_takes_the_closest_length_and_of_two_the_shorter() -> None:
    reference = ["a b c d", "a b c d e f g h"]
    assert bleu4(["a b c d e f"], [reference]).value == pytest.approx(
        1, rel=1e-6
    )  # 4 and 8 are as close: 4, no penalty
    assert bleu4(["a b c d e f g"], [reference]).value == pytest.approx(math.exp(1 - 8 / 7), rel=1e-6)
    assert bleu4(["a b c d e"], [["a b c d e f g h"]]).value == pytest.approx(math.exp(1 - 8 / 5), rel=1e-6)


def test_bleu_clips_by_the_most_of_one_reference() -> None:
    counts = caption_metrics._matches(["the"] * 4, [["the", "cat", "the"], ["the", "dog"]])
    assert counts == [2, 0, 0, 0, 4, 3, 2, 1, 4, 3]


def test_rouge_takes_precision_and_recall_from_different_references() -> None:
    # against "a b" P = 2/4, R = 1; against "a b c d e f g h" P = 1, R = 1/2: both maxima are 1
    assert rouge_l(["a b c d"], [["a b", "a b c d e f g h"]]).value == pytest.approx(1)
    assert rouge_l(["a x b y"], [["a b c"]]).value == pytest.approx(2.44 * (1 / 2) * (2 / 3) / (2 / 3 + 1.44 / 2))
    assert rouge_l(["a b c"], [["c b a"]]).value == pytest.approx(1 / 3)  # an order counts


def test_exact_match_compares_words() -> None:
    got = exact_match(["A cat.", "a cat", "a  CAT"], [["a cat"], ["the cat", "a cat sits"], ["no", "A cat!"]])
    assert got.each.tolist() == [1, 0, 1] and got.value == pytest.approx(2 / 3)


def test_nothing_said_and_single_words_are_scored() -> None:
    for name, metric in CAPTION_METRICS.items():
        got = metric(["", "cat", "..."], [["a cat"], ["cat"], ["a dog", "!"]])
        assert np.isfinite(got.each).all() and got.each[0] == pytest.approx(0, abs=1e-9), name
    assert cider_d(["cat", "dog"], [["cat"], ["dog"]]).each == pytest.approx([2.5, 2.5])  # unigrams only: a quarter


def test_what_cannot_be_scored() -> None:
    for metric in CAPTION_METRICS.values():
        with pytest.raises(UserError, match="0 candidates"):
            metric([], [])
        with pytest.raises(UserError, match="2 candidates, 1 of them without reference"):
            metric(["a", "b"], [["a"], []])
        with pytest.raises(ValueError, match="zip"):
            metric(["a", "b"], [["a"]])
        with pytest.raises(AssertionError):
            metric(["a"], ["a"])  # a text where texts belong would be compared letter by letter


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's dog isn't (really) happy -- it's \"great\"; don't you think?",
         "a man 's dog is n't -lrb- really -rrb- happy it 's great do n't you think"),
        ("Cannot we go? I'm gonna eat it. They've a well-known co-op, 3.5 x 2/3 km at 10:30 a.m.",
         "can not we go i 'm gon na eat it they 've a well-known co-op 3.5 x 2/3 km at 10:30 a.m."),
        ("The dogs' bone... is big! U.S.A. won 1,000 $5.00 & 50% more @ home #1",
         "the dogs bone is big u.s.a. won 1,000 $ 5.00 & 50 % more @ home # 1"),
        ("a re-used x-ray of a T-shirt, don’t “quote” ‘this’ – dash — em … dots",
         "a re-used x-ray of a t-shirt do n't quote this dash em dots"),
        ("he'd she'll we're I'VE CAN'T won't o'clock", "he 'd she 'll we 're i 've ca n't wo n't o'clock"),
        ("a man,woman and/or child .Look", "a man woman and/or child look"),
        ("St. Patrick's Day, No. 7, on Main St.", "st. patrick 's day no. 7 on main st."),
        ("10 x 10 ft. room; 6'2\" tall !!", "10 x 10 ft. room 6 2 tall !!"),
        ("wanna gimme lemme gotta", "wan na gim me lem me got ta"),
        ("mac 'n' cheese in the '90s, me@x.org", "mac 'n' cheese in the '90s me@x.org"),
        ("naïve café 狗\n [left] {right}", "naïve café 狗 -lsb- left -rsb- -lcb- right -rcb-"),
        (" . ", ""),
    ],
)  # fmt: skip
def test_tokenize_as_stanford(text: str, words: str) -> None:
    """Pinned from PTBTokenizer of stanford-corenlp-3.4.1.jar, -preserveLines -lowerCase, punctuation list applied."""
    assert tokenize(text) == words.split()


def test_tokenize_differs_from_stanford_where_the_docstring_says() -> None:
    assert tokenize("'tis y'all c++ <b> etc. approx. 😀") == [
        "tis", "y'all", "c", "+", "+", "<", "b", ">", "etc.", "approx", "😀",
    ]  # fmt: skip
