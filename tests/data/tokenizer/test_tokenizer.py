"""What every kind of tokenizer keeps to: the protocol, states, refusals."""

import concurrent.futures
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.tokenizer.texts import NASTY, anything
from vit_jax.data.tokenizer import fingerprint, from_state, open_tokenizer
from vit_jax.types import UsageError, UserError


@pytest.fixture(scope="session")
def tokenizer(spec):
    return open_tokenizer(spec)


@given(text=anything)
def test_any_string_becomes_content_ids(tokenizer, text):
    ids = tokenizer.ids(text)
    assert all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.end_id not in ids and tokenizer.start_id not in ids
    assert isinstance(tokenizer.text(ids), str)


@pytest.mark.parametrize("clean", ["none", "whitespace", "lower", "canonicalize"])
def test_no_cleaning_lets_a_lone_surrogate_fail(spec, clean):
    t = open_tokenizer("bytes" if spec == "bytes" else f"{spec}?clean={clean}")
    assert t.text(t.ids("a \udc80 b \ud83d\ude00")).startswith("a")


@given(ids=st.lists(st.integers(-2, 700), max_size=12))
def test_any_ids_become_text(tokenizer, ids):
    assert isinstance(tokenizer.text(ids), str)


def test_special_tokens_are_distinct_from_content(tokenizer):
    assert tokenizer.start_id != tokenizer.end_id
    for special in (tokenizer.start_id, tokenizer.end_id):
        assert special is None or 0 <= special < tokenizer.vocab_size
    assert 0 <= tokenizer.pad_id < tokenizer.vocab_size


def test_text_ignores_start_padding_and_what_follows_the_end(tokenizer):
    ids = tokenizer.ids("a photo of the cat")
    assert tokenizer.text(ids) == "a photo of the cat"
    start = [] if tokenizer.start_id is None else [tokenizer.start_id]
    padding = [tokenizer.pad_id] * 3
    for row in (start + ids, [*start, *ids, tokenizer.end_id, *padding], ids + padding, [*ids, tokenizer.end_id, *ids]):
        assert tokenizer.text(row) == "a photo of the cat"


def test_state_is_json_and_restores(tokenizer):
    state = json.loads(json.dumps(tokenizer.state()))
    for again in (from_state(state), pickle.loads(pickle.dumps(tokenizer))):
        assert again == tokenizer and hash(again) == hash(tokenizer)
        assert again.fingerprint == fingerprint(state) == tokenizer.fingerprint and again.state() == state
        for name in ("vocab_size", "pad_id", "end_id", "start_id"):
            assert getattr(again, name) == getattr(tokenizer, name)
        for text in NASTY:
            assert again.ids(text) == tokenizer.ids(text)


def test_a_damaged_state_is_a_sentence(tokenizer):
    state = tokenizer.state()
    damaged = [{**state, "kind": "byte"}, {k: v for k, v in state.items() if k != "kind"}, None, [state]]
    for key in set(state) - {"kind"}:
        damaged += [{k: v for k, v in state.items() if k != key}, {**state, key: [3]}, {**state, key: True}]
    if "data" in state:
        data = state["data"]
        damaged += [
            {**state, "data": d} for d in ("", "?", data[:-8], data[: len(data) // 8 * 4], "é", data[:40] + data[80:])
        ]
    if "pad_id" in state:
        damaged += [{**state, key: tokenizer.vocab_size} for key in ("pad_id", "end_id", "start_id")]
        damaged += [{**state, key: -1} for key in ("pad_id", "end_id", "start_id")]
    if "clean" in state:
        damaged.append({**state, "clean": "lowr"})
    for bad in damaged:
        with pytest.raises(UserError):
            from_state(bad)


def test_the_fingerprint_tells_tokenizers_apart(merges_file, json_file, model_file):
    specs = ["bytes"]
    specs += [f"clip:{merges_file}{o}" for o in ("", "?clean=whitespace")]
    specs += [f"json:{json_file}{o}" for o in ("", "?pad=</s>", "?start=", "?clean=lower", "?end=a")]
    specs += [f"sentencepiece:{model_file}{o}" for o in ("", "?pad=<pad>", "?clean=none")]
    tokenizers = [open_tokenizer(spec) for spec in specs]
    assert len({t.fingerprint for t in tokenizers}) == len(set(tokenizers)) == len(specs)


def test_threads_agree(tokenizer):
    expected = [tokenizer.ids(text) for text in NASTY]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for ids in pool.map(lambda _: [tokenizer.ids(text) for text in NASTY], range(24)):
            assert ids == expected


@pytest.mark.parametrize(
    "spec, match",
    [
        ("byte", "did you mean 'bytes'"),
        ("", "unknown tokenizer"),
        ("hf://org/name", "unknown tokenizer"),
        ("bytes:x", "'bytes' takes no file"),
        ("json", "names no file"),
        ("sentencepiece:?pad=x", "names no file"),
        ("json:{json}?edn=</s>", "did you mean 'end'"),
        ("json:{json}?end=</S>", "did you mean '</s>'"),
        ("json:{json}?clean=lowr", "did you mean 'lower'"),
        ("clip:{clip}?clean=nothing", "unknown clean"),
        ("clip:{clip}?pad=!", "unknown tokenizer option 'pad'"),
        ("json:/nowhere/x.json", "cannot be read"),
        ("clip:/nowhere/x.gz", "cannot be read"),
        ("sentencepiece:/nowhere", "cannot be read"),
        ("json:{folder}", "cannot be read"),
        ("clip:{folder}", "holds none of"),
    ],
)
def test_open_says_what_is_wrong(spec, match, json_file, merges_file, tmp_path):
    with pytest.raises(UserError, match=match) as e:
        open_tokenizer(spec.format(json=json_file, clip=merges_file, folder=tmp_path))
    assert "\n" not in str(e.value)


def test_unknown_kind_is_a_usage_error():
    with pytest.raises(UsageError):
        open_tokenizer("CLIP")
