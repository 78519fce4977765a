"""Batches of a source whose captions are wanted."""

import dataclasses

import numpy as np
import pytest

from vit_jax.config import parse
from vit_jax.data.loader import DataConfig, caption_draws, eval_batches, train_batches
from vit_jax.data.prompts import TEMPLATES
from vit_jax.data.sources import open_source
from vit_jax.data.sources.base import Subset
from vit_jax.data.sources.captioned import WithTokenizer
from vit_jax.data.sources.fake import Fake
from vit_jax.data.text import TextConfig
from vit_jax.types import UsageError, UserError

KEYS = {"image", "size", "label", "mask", "index"}


def train(source, **options):
    return train_batches(source, **{"batch_size": 8, "seed": 0, "canvas": 4, "workers": 2, **options})


def equal(a, b, keys):
    return set(a) == set(b) == keys and all(np.array_equal(a[k], b[k]) for k in a)


TEXT = TextConfig(length=52)


@pytest.fixture(scope="module")
def pairs():
    """The embedded pairs: training with six captions, validation with three."""
    config = DataConfig(path="digits_pairs", text=TEXT, canvas=16)
    return config.open("train"), config.open("val")


def test_captions_are_functions_of_seed_and_position(pairs):
    source, _ = pairs
    keys = KEYS | {"text"}
    options = {"batch_size": 24, "canvas": 16, "steps": 5}
    whole = list(train(source, **options))
    for step, batch in enumerate(whole):
        draws = caption_draws(step, seed=0, batch_size=24)
        for index, row, draw in zip(batch["index"], batch["text"], draws, strict=True):
            assert source.info.encoder.decode(row) == source[int(index)]["captions"][int(draw) % 6]
    for hosts in (2, 4, 8):
        parts = [train(source, places=places, **options) for places in np.split(np.arange(24), hosts)]
        joined = [{k: np.concatenate([b[k] for b in batch]) for k in keys} for batch in zip(*parts, strict=True)]
        assert len(joined) == 5 and all(equal(a, b, keys) for a, b in zip(joined, whole, strict=True))
    resumed = list(train(source, start_step=3, **options))
    assert len(resumed) == 2 and all(equal(a, b, keys) for a, b in zip(resumed, whole[3:], strict=True))
    for workers, prefetch in ((1, 1), (8, 5)):
        again = train(source, workers=workers, prefetch=prefetch, **options)
        assert all(equal(a, b, keys) for a, b in zip(again, whole, strict=True))
    assert not np.array_equal(next(train(source, seed=1, **options))["text"], whole[0]["text"])


def test_draws_are_uniform_and_new_in_every_epoch():
    draws = np.concatenate([caption_draws(t, seed=3, batch_size=500) for t in range(60)])
    assert draws.dtype == np.uint64 and len(np.unique(draws)) == 30_000
    counts = np.bincount((draws % np.uint64(6)).astype(int), minlength=6)
    assert np.abs(counts - 5000).max() < 4 * np.sqrt(5000)
    pairs = np.bincount(((draws[:-1] % np.uint64(2)) * np.uint64(2) + draws[1:] % np.uint64(2)).astype(int))
    assert np.abs(pairs - 7500).max() < 4 * np.sqrt(7500)  # neighbours draw independently
    assert not np.array_equal(draws, np.concatenate([caption_draws(t, seed=4, batch_size=500) for t in range(60)]))


def test_an_image_gets_other_captions_in_other_epochs():
    small = open_source("mix:1*digits", holdout=0, templates=tuple(f"{k} {{}}" for k in range(9)))
    few = WithTokenizer(Subset(small, np.arange(40)), TEXT.encoder())
    seen = [set() for _ in range(40)]
    for batch in train(few, batch_size=40, steps=30, canvas=8):
        for index, row in zip(batch["index"], batch["text"], strict=True):
            seen[index].add(few.info.encoder.decode(row))
    assert min(map(len, seen)) >= 6 and set.union(*seen) == {c for i in range(40) for c in few[i]["captions"]}


@pytest.mark.parametrize("hosts", [1, 3])
def test_evaluation_has_every_caption_once(pairs, hosts):
    _, source = pairs
    parts = [
        list(eval_batches(source, batch_size=99, canvas=16, workers=2, places=places))
        for places in np.split(np.arange(99), hosts)
    ]
    batches = [{k: np.concatenate([b[k] for b in step]) for k in step[0]} for step in zip(*parts, strict=True)]
    assert len(batches) == 6 and set(batches[0]) == KEYS | {"text", "captions"}
    assert batches[0]["text"].shape == (99, 3, 52) and batches[0]["text"].dtype == np.int32
    whole = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    assert np.array_equal(whole["captions"], np.where(whole["mask"], 3, 0)) and whole["mask"].sum() == 512
    for i in range(512):
        assert tuple(map(source.info.encoder.decode, whole["text"][i])) == source[i]["captions"]
    assert (whole["text"][512:] == source.info.encoder.tokenizer.pad_id).all()


def test_truncated_captions_are_counted():
    config = DataConfig(path="digits_pairs", text=TextConfig(length=20), canvas=16)
    batches = train(config.open("train"), batch_size=64, canvas=16, steps=3)
    cut = sum(int((b["text"][:, -1] != config.text.encoder().tokenizer.pad_id).sum()) for b in batches)
    assert 0 < batches.truncated <= cut < 3 * 64 and batches.skipped == 0
    source = config.open("val")
    batches = eval_batches(source, batch_size=64, canvas=16)
    list(batches)
    assert batches.truncated == source.info.encoder.truncated(t for i in range(512) for t in source[i]["captions"])


def test_bad_captions_are_skipped_alike_by_any_number_of_hosts():
    class Titled(Fake):
        def __getitem__(self, i):
            captions = ("",) if i in (5, 6) else (f"a {i}", f"the {i}")
            return {**super().__getitem__(i), "captions": captions}

    plain = Titled(300, 4, 2)
    plain.info = dataclasses.replace(plain.info, captions=2)
    source, keys = WithTokenizer(plain, TEXT.encoder()), KEYS | {"text"}
    whole_batches = train(source, steps=75, on_error="skip")
    whole = list(whole_batches)
    assert whole_batches.skipped == 2 and whole_batches.truncated == 0
    assert "a caption of fake[5] is empty" in whole_batches.unreadable[5]
    texts = [source.info.encoder.decode(row) for b in whole for row in b["text"]]
    assert "" not in texts and {int(i) for b in whole for i in b["index"]} == set(range(300)) - {5, 6}
    parts = [train(source, steps=75, on_error="skip", places=np.arange(4 * p, 4 * p + 4)) for p in range(2)]
    joined = [{k: np.concatenate([b[k] for b in batch]) for k in keys} for batch in zip(*parts, strict=True)]
    assert all(equal(a, b, keys) for a, b in zip(joined, whole, strict=True))
    with pytest.raises(UserError, match=r"a caption of fake\[[56]\] is empty; repair or remove it"):
        list(train(source, steps=75))


def test_config_with_text():
    plain = DataConfig(path="digits", canvas=8)
    assert plain.open("train").info.encoder is None and "text" not in next(train(plain.open("train"), canvas=8))
    config = parse(DataConfig, {"path": "digits", "canvas": 8, "text": {"length": 20, "templates": "digits"}})
    source, val = config.open("train"), config.open("val")
    assert source.info.captions == val.info.captions == len(TEMPLATES["digits"]) and source.info.num_classes == 10
    batch = next(train(source, canvas=8))
    for label, row in zip(batch["label"], batch["text"], strict=True):
        assert str(label) in source.info.encoder.decode(row)
    assert val.info.encoder.length == 20
    with pytest.raises(
        UserError, match=r"'digits' has images without captions; set data\.text\.templates, such as 'photo'"
    ):
        DataConfig(path="digits", text=TEXT).open("train")
    with pytest.raises(UserError, match=r"'mix:.*' has images without captions"):
        DataConfig(path="mix:1*digits+1*digits_pairs", text=TEXT).open("val")
    with pytest.raises(UsageError, match=r"templates='foto' is neither"):
        parse(DataConfig, {"path": "digits", "text": {"templates": "foto"}})


def test_first_captions_train_and_all_are_evaluated():
    for extra in ({}, {"val": "digits_pairs:phrasings"}):
        config = DataConfig(path="digits_pairs", canvas=16, text=dataclasses.replace(TEXT, choose="first"), **extra)
        source, val = config.open("train"), config.open("val")
        assert source.info.captions == 1 and val.info.captions == (6 if extra else 3)
        batch = next(train(source, canvas=16))
        for index, row in zip(batch["index"], batch["text"], strict=True):
            assert source.info.encoder.decode(row) == source.source[int(index)]["captions"][0]


def test_validation_on_other_data():
    pairs = DataConfig(path="digits_pairs", canvas=16, text=dataclasses.replace(TEXT, templates="photo"))
    val = dataclasses.replace(pairs, val="digits").open("val")
    assert val.info.encoder is not None and val.info.class_names == ()
    assert val[1]["captions"] == ("a photo of a 2.",) and val[1]["label"] == 0
    with pytest.raises(UserError, match=r"data.val='digits_pairs' has captions and no classes"):
        dataclasses.replace(pairs, path="digits", val="digits_pairs").open("val")


def test_other_data_for_an_evaluator():
    config = DataConfig(path="digits_pairs", canvas=16, text=TEXT)
    digits = config.open_other("digits")  # no captions: none are made up, its classes are what is asked for
    assert len(digits) == 360 and digits.info.encoder is None and digits.info.num_classes == 10
    pairs = config.open_other("digits_pairs:phrasings")
    assert len(pairs) == 512 and pairs.info.captions == 6 and pairs.info.encoder is not None
    assert DataConfig(path="digits").open_other("digits_pairs").info.encoder is None
