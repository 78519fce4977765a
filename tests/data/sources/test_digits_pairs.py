import collections

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vit_jax.data.framing import TRAINING
from vit_jax.data.image import decode
from vit_jax.data.sources import open_source
from vit_jax.data.sources.digits_pairs import (
    EXAMPLES,
    HELD_OUT_PHRASINGS,
    INKS,
    PHRASINGS,
    WORDS,
    Composition,
    Glyph,
    compose,
    pair,
    phrase,
    single,
)
from vit_jax.types import UserError


@pytest.fixture(scope="module")
def train():
    return open_source("digits_pairs")


@pytest.fixture(scope="module")
def val():
    return open_source("digits_pairs", "val")


@pytest.fixture(scope="module")
def scans():
    """The bytes of each scan -> (its number in the file, what it shows)."""
    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)
    return {image.tobytes(): (i, int(digit)) for i, (image, digit) in enumerate(zip(images, data.target, strict=True))}


def found(image, layout, scans):
    """[(ink, (scan number, digit), shift)] of an image, read back from its pixels alone."""
    if layout == "one":
        boxes = [(0, image)]
    else:
        halves = [image[:, :8], image[:, 8:]] if layout == "beside" else [image[:8], image[8:]]
        boxes = []
        for half in halves:
            inside = [(s - 4, half[s : s + 8] if layout == "beside" else half[:, s : s + 8]) for s in range(2, 7)]
            boxes.append(next((s, b) for s, b in inside if b.max(-1).tobytes() in scans and b.sum() == half.sum()))
    inks = {tuple(c == 255 for c in rgb): ink for ink, rgb in INKS.items()}
    out = []
    for shift, box in boxes:
        brightest = box.reshape(64, 3)[box.max(-1).argmax()]
        ink = inks[tuple((brightest == brightest.max()).tolist())]
        out.append((ink, scans[box.max(-1).tobytes()], shift))
    return out


def test_every_image_shows_what_its_captions_say(train, val, scans):
    for source, indices in ((train, range(0, EXAMPLES, 97)), (val, range(512))):
        for i in indices:
            record, composition = source[i], source.composition(i)
            shown = found(record["image"], composition.layout, scans)
            assert tuple(Glyph(digit, ink) for ink, (_, digit), _ in shown) == composition.glyphs
            wordings = PHRASINGS if source is train else HELD_OUT_PHRASINGS
            assert record["captions"] == phrase(composition, wordings) and record["label"] == 0


def test_wordings_by_hand():
    red, plain, eight = Glyph(3, "red"), Glyph(7), Glyph(8)
    assert phrase(Composition("beside", (red, plain))) == (
        "a red three to the left of a seven",
        "a seven to the right of a red three",
        "red three left of seven",
        "seven right of red three",
        "the red three is left of the seven",
        "the seven is right of the red three",
    )
    assert phrase(Composition("above", (eight, red))) == (
        "an eight above a red three",
        "a red three below an eight",
        "eight on top of red three",
        "red three under eight",
        "the eight is above the red three",
        "the red three is below the eight",
    )
    assert phrase(Composition("one", (red,))) == (
        "a red three",
        "red three",
        "the red three",
        "a red 3",
        "red 3",
        "the red digit 3",
    )
    assert phrase(Composition("one", (eight,))) == ("an eight", "eight", "the eight", "an 8", "8", "the digit 8")
    assert phrase(Composition("beside", (red, eight)), HELD_OUT_PHRASINGS) == (
        "a red three is to the left of an eight",
        "an eight right of a red three",
        "eight to the right of red three",
    )
    assert phrase(Composition("above", (red, eight)), HELD_OUT_PHRASINGS) == (
        "a red three is above an eight",
        "an eight under a red three",
        "eight below red three",
    )


def test_drawing_by_hand():
    first, second = np.arange(64, dtype=np.uint8).reshape(8, 8), np.full((8, 8), 255, np.uint8)
    beside = compose(Composition("beside", (Glyph(1), Glyph(2, "green"))), [first, second], [-2, 1])
    assert beside.shape == (16, 16, 3) and beside.dtype == np.uint8
    assert np.array_equal(beside[2:10, :8], np.repeat(first[..., None], 3, -1))
    assert (beside[5:13, 8:] == (64, 255, 64)).all() and beside[:5, 8:].sum() == beside[13:, 8:].sum() == 0
    above = compose(Composition("above", (Glyph(1), Glyph(2, "yellow"))), [first, second], [0, 2])
    assert np.array_equal(above[:8, 4:12, 0], first) and (above[8:, 6:14] == (255, 255, 64)).all()
    assert above[8:, :6].sum() == above[8:, 14:].sum() == 0
    assert np.array_equal(
        compose(Composition("one", (Glyph(1, "red"),)), [first])[..., 1], first.astype(int) * 64 // 255
    )


def test_side_by_side_is_never_also_one_above_the_other():
    """Whatever the shifts, the rows of two neighbours overlap, so one layout alone describes the picture."""
    full = np.full((8, 8), 255, np.uint8)
    for shifts in ((-2, 2), (2, -2)):
        image = compose(Composition("beside", (Glyph(1), Glyph(1))), [full, full], shifts)[..., 0] > 0
        assert (image[:, :8].any(1) & image[:, 8:].any(1)).sum() >= 4


@pytest.mark.parametrize("canvas", [16, 24])
def test_a_plain_digit_looks_like_the_scan(train, scans, canvas):
    """To the model it is the same image as one of ``digits``, bit for bit."""
    digits = open_source("digits")
    originals = {digits[i]["image"].tobytes(): digits[i] for i in range(len(digits))}
    plain = list(range(7, 8 * 10, 8))
    assert [train.composition(i).glyphs for i in plain] == [(Glyph(d),) for d in range(10)]
    for i in plain:
        original = originals[train[i]["image"].tobytes()]
        assert original["label"] == train.composition(i).glyphs[0].digit
        ours, theirs = (decode(r, canvas, TRAINING) for r in (train[i], original))
        assert np.array_equal(ours[0], theirs[0]) and ours[1] == theirs[1]


def test_nothing_held_out_is_ever_trained_on(train, val, scans):
    trained = collections.Counter(train.composition(i) for i in range(EXAMPLES))
    held = collections.Counter(val.composition(i) for i in range(512))
    assert len(held) == 512 and set(held.values()) == {1}  # every composition once
    assert not trained.keys() & held.keys()
    assert trained.keys() | held.keys() == {*map(pair, range(5000)), *map(single, range(50))}
    assert {n for c, n in trained.items() if c.layout != "one"} == {12, 13}
    assert {n for c, n in trained.items() if c.layout == "one"} == {163, 164}
    used = {
        source: {n for i in indices for _, (n, _), _ in found(source[i]["image"], source.composition(i).layout, scans)}
        for source, indices in ((train, range(0, EXAMPLES, 5)), (val, range(512)))
    }
    assert used[val] <= set(open_source("digits", "val").indices.tolist()) and len(used[val]) > 300
    assert used[train] <= set(open_source("digits", "train").indices.tolist()) and len(used[train]) == 1437
    assert {c.layout for c in held} == {"beside", "above"}
    assert {g for c in held for g in c.glyphs} == {single(i).glyphs[0] for i in range(50)}


def test_held_out_phrasings_are_new_and_made_of_known_words(train, val):
    every = [*map(pair, range(5000)), *map(single, range(50))]
    known = {text for c in every for text in phrase(c)}
    new = {text for i in range(512) for text in val[i]["captions"]}
    assert not known & new
    assert {w for text in new for w in text.split()} <= {w for text in known for w in text.split()}
    assert max(map(len, known | new)) <= 48 and all(text.isascii() and text.islower() for text in new)
    assert set(WORDS) <= {w for text in known for w in text.split()}


def test_every_caption_describes_one_composition():
    every = [*map(pair, range(5000)), *map(single, range(50))]
    texts = [(text, c) for c in every for text in phrase(c)]
    texts += [(text, c) for c in every if c.layout != "one" for text in phrase(c, HELD_OUT_PHRASINGS)]
    assert len(texts) == 5050 * 6 + 5000 * 3 and len(dict(texts)) == len(texts)


def test_phrasings_of_training_for_held_out_images(val):
    other = open_source("digits_pairs:phrasings", "val")
    assert (val.info.captions, other.info.captions) == (3, 6)
    for i in (0, 17, 511):
        assert np.array_equal(other[i]["image"], val[i]["image"])
        assert other[i]["captions"] == phrase(val.composition(i))
    assert open_source("digits_pairs:phrasings")[5]["captions"] == open_source("digits_pairs")[5]["captions"]


def test_examples_are_pure_functions_of_their_index(train, val):
    again = open_source("digits_pairs", holdout=0, seed=5), open_source("digits_pairs", "val", holdout=3)
    assert (len(train), len(val)) == (EXAMPLES, 512) == tuple(map(len, again))
    for one, other in zip((train, val), again, strict=True):
        for i in (100, 7, 511, 100):
            assert np.array_equal(one[i]["image"], other[i]["image"]) and one[i]["captions"] == other[i]["captions"]
    seen = {train[i]["image"].tobytes() for i in range(0, EXAMPLES, 101)}
    assert len(seen) > 640  # of 649: only plain single scans may come twice
    with pytest.raises(IndexError):
        val[512]
    assert train.info.class_names == () and train.info.captions == 6


def test_scans_and_shifts_are_drawn_anew_for_each_example(train, scans):
    """Uniformly, and independently of the glyph beside it and of the examples before it."""
    rows = [i for i in range(4000) if i % 8 < 6]
    shifts = np.array([[s for _, _, s in found(train[i]["image"], train.composition(i).layout, scans)] for i in rows])
    assert shifts.shape == (3000, 2)
    for one, other in ((shifts[:, 0], shifts[:, 1]), (shifts[:-1, 0], shifts[1:, 0]), (shifts[:-1, 1], shifts[1:, 1])):
        counts = np.bincount((one + 2) * 5 + other + 2, minlength=25)
        assert np.abs(counts - 120).max() < 5 * np.sqrt(120)


def test_other_paths():
    with pytest.raises(UserError, match=r"'digits_pairs:phrasing' is unknown; did you mean 'phrasings'\? Write"):
        open_source("digits_pairs:phrasing")
