"""CLIP's pairs: equal to open_clip and transformers id for id, and to a plain implementation on a tiny vocabulary."""

import gzip
import itertools
import json
import pathlib
import random
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.data.tokenizer.conftest import MERGES
from tests.data.tokenizer.texts import NASTY, PLAIN, assigned, known
from vit_jax.data.tokenizer import clip, open_tokenizer
from vit_jax.data.tokenizer.base import MAX_BYTES
from vit_jax.data.tokenizer.clean import fix
from vit_jax.data.tokenizer.clip import Clip, build_vocabulary
from vit_jax.types import UserError


@pytest.fixture(scope="module")
def full():
    """CLIP's own."""
    return open_tokenizer("clip")


@pytest.fixture(scope="module")
def peer(open_clip):
    return open_clip.tokenizer.SimpleTokenizer()


def test_runs_that_began_with_the_file_of_open_clip_go_on(full):
    """That file's fingerprint, which their checkpoints keep."""
    assert full.fingerprint == "d5e637e111210b97cc9c1286e0eba2da"
    assert full.ids("A photo of 2 cats 🐈") == [320, 1125, 539, 273, 3989, 2074, 486]


def test_the_vocabulary_of_open_clip_is_the_same(full, open_clip):
    path = pathlib.Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    assert open_tokenizer(f"clip:{path}") == full


def test_layout(full, peer):
    assert (full.vocab_size, full.start_id, full.end_id, full.pad_id) == (49_408, 49_406, 49_407, 0)
    vocabulary = build_vocabulary(full.merges)
    assert list(vocabulary.items()) == list(peer.encoder.items())[:-2]


@pytest.mark.parametrize("text", NASTY)
def test_nasty_texts_equal_open_clip(full, peer, text):
    ids = peer.encode(text)
    assert full.ids(text) == ids
    assert full.text(ids) == peer.decode(ids).rstrip()


@settings(max_examples=400)
@given(text=assigned)
def test_random_strings_equal_open_clip(full, peer, text):
    assume("_of_text>" not in text.lower() and known(fix(text)))  # see below; hypothesis does find both
    assert full.ids(text) == peer.encode(text)


def test_random_words_equal_open_clip(full, peer):
    rnd, pieces = random.Random(0), list(peer.encoder)[:-2]
    for _ in range(300):
        text = "".join(rnd.choice(pieces).replace("</w>", " ") for _ in range(rnd.randrange(1, 30)))
        assert full.ids(text) == peer.encode(text)


@pytest.mark.parametrize("clean", ["whitespace", "canonicalize"])
def test_other_cleaning_equals_open_clip(open_clip, clean):
    ours, peer = open_tokenizer(f"clip:?clean={clean}"), open_clip.tokenizer.SimpleTokenizer(clean=clean)
    for text in NASTY:
        assert ours.ids(text) == peer.encode(text)


def test_a_text_cannot_spell_the_special_tokens(full, peer):
    """The one difference from open_clip, on purpose: there the caption would end in its middle."""
    text = "a <end_of_text> cat <start_of_text>"
    assert full.end_id in peer.encode(text)
    assert {full.start_id, full.end_id}.isdisjoint(full.ids(text))
    assert full.text(full.ids(text)) == "a < end _ of _ text > cat < start _ of _ text >"


def test_equals_transformers_and_opens_its_files(full, transformers, tmp_path):
    vocabulary = {**build_vocabulary(full.merges), "<|startoftext|>": full.start_id, "<|endoftext|>": full.end_id}
    merges = [tuple(m.split(" ")) for m in full.merges.split("\n")]
    peer = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)
    for text in [*PLAIN, "中文 日本語 é ñ 🐈 ☃", "Ⅷ ½ ١٢٣", "ОДНА Кошка"]:
        assert peer(text)["input_ids"] == [full.start_id, *full.ids(text), full.end_id]
    peer.save_pretrained(tmp_path)
    assert open_tokenizer(f"clip:{tmp_path}") == open_tokenizer(f"clip:{tmp_path}/tokenizer.json") == full
    (tmp_path / "tokenizer.json").rename(tmp_path / "other.json")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + full.merges + "\n", encoding="utf-8")
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    assert open_tokenizer(f"clip:{tmp_path}") == full
    generic = open_tokenizer(f"json:{tmp_path}/other.json?pad=!")
    for text in PLAIN:
        assert generic.ids(text) == full.ids(text)
    assert (generic.start_id, generic.end_id, generic.pad_id) == (full.start_id, full.end_id, full.pad_id)


def plain_bpe(text: str) -> list[int]:
    """The encoding as its paper tells it, of lower-case printable ASCII: join the earliest pair until none is left."""
    vocabulary = build_vocabulary("\n".join(MERGES))
    rank = {tuple(m.split(" ")): i for i, m in enumerate(MERGES)}
    ids = []
    for word in re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+", text):
        parts = [*word[:-1], word[-1] + "</w>"]
        while pairs := [p for p in itertools.pairwise(parts) if p in rank]:
            best = min(pairs, key=rank.__getitem__)
            i = next(i for i, p in enumerate(itertools.pairwise(parts)) if p == best)
            parts[i : i + 2] = ["".join(best)]
        ids += [vocabulary[p] for p in parts]
    return ids


@given(
    text=st.text(st.sampled_from("thecapofs'12 .<"), max_size=40)
    | st.text(st.characters(codec="ascii", exclude_characters="&<"))
)
def test_equals_the_plain_algorithm(merges_file, text):
    t = open_tokenizer(f"clip:{merges_file}")
    text = " ".join(c for c in text.lower().split() if c.isprintable())
    assert t.ids(text) == plain_bpe(text)


def test_a_small_vocabulary_by_hand(merges_file):
    t = Clip.open(str(merges_file))
    assert (t.vocab_size, t.start_id, t.end_id, t.pad_id) == (512 + 11 + 2, 523, 524, 0)
    assert t.ids("The  CAT's photo") == [513, 515, 520, 519]
    assert t.text([523, 513, 515, 520, 519, 524, 0]) == "the cat 's photo"
    assert t.ids("!") == [256] and t.ids("12") == [ord("1") - 33 + 256, ord("2") - 33 + 256]  # one digit, one word
    assert t.text([0, 256, 524, 0, 0]) == "!!"  # id 0 is content where it is not at the end


def test_files_of_any_wrapping_are_the_same(merges_file, tmp_path):
    text = merges_file.read_text()
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "crlf.txt").write_bytes(text.replace("\n", "\r\n").encode())
    (tmp_path / "bare.txt").write_text("\n".join(MERGES))
    for path in tmp_path.iterdir():
        assert open_tokenizer(f"clip:{path}") == open_tokenizer(f"clip:{merges_file}")


def test_only_the_first_merges_count(monkeypatch, merges_file):
    monkeypatch.setattr(clip, "NUM_MERGES", 5)
    assert Clip.open(str(merges_file)).merges.split("\n") == MERGES[:5]


@pytest.mark.parametrize(
    "content, match",
    [
        (b"\x1f\x8b" + b"\x00" * 20, "no vocabulary"),
        (gzip.compress(b"t h\n" * 100, mtime=0)[:-10], "truncated"),
        (gzip.compress(b"t h\n", mtime=0) + gzip.compress(b"t o\n", mtime=0), "several files"),
        (gzip.compress(b"\0" * (MAX_BYTES + 1), mtime=0), "when decompressed"),
        (b"\xff t h", "no UTF-8"),
        (b"t h\nthe e", "merge 2"),
        (b"t h\nt h", "merge 2"),
        (b"t h\nth", "merge 2"),
        (b"t h\n\nh e", "merge 2"),
        (b"t h e", "merge 1"),
        (b"{}", "merge 1"),
    ],
    ids=itertools.count(),  # compressed bytes hold the time, and names of tests must be the same in every worker
)
def test_damaged_files_are_sentences(tmp_path, content, match):
    path = tmp_path / "merges.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=match):
        Clip.open(str(path))


@pytest.mark.parametrize(
    "value, match",
    [
        ("{", "no JSON"),
        ("{}", "no byte-pair encoding"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "no byte-pair encoding"),
        ({"model": {"vocab": {"!": 0}, "merges": ["t h"]}}, "'\"' is None, not 1"),
        ({"model": {"vocab": build_vocabulary("t h") | {"a": 7}, "merges": [["t", "h"]]}}, "another way"),
        (
            {"model": {"vocab": build_vocabulary("t h") | {"<x>": 513, "<y>": 514, "<z>": 515}, "merges": ["t h"]}},
            "'<z>' is 515",
        ),
        ({"model": {"vocab": {}, "merges": [3]}}, "merge 1"),
    ],
)
def test_a_foreign_tokenizer_json_is_refused(tmp_path, value, match):
    path = tmp_path / "tokenizer.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(UserError, match=match):
        Clip.open(str(path))


def test_a_vocabulary_beside_the_merges_must_agree(merges_file, tmp_path):
    (tmp_path / "merges.txt").write_text(merges_file.read_text())
    vocabulary = build_vocabulary("\n".join(MERGES))
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary | {"<s>": 523, "</s>": 524}))
    assert Clip.open(str(tmp_path)) == Clip.open(str(merges_file))
    (tmp_path / "vocab.json").write_text(json.dumps({token: i + 1 for token, i in vocabulary.items()}))
    with pytest.raises(UserError, match="another way"):
        Clip.open(str(tmp_path))
    (tmp_path / "vocab.json").write_text("[1]")
    with pytest.raises(UserError, match="a JSON list"):
        Clip.open(str(tmp_path))


def test_too_large_a_file_is_not_read(tmp_path):
    with open(tmp_path / "x", "wb") as f:
        f.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match="more than"):
        Clip.open(str(tmp_path / "x"))
