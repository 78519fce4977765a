"""What is told of places, sentences and configurations."""

import pytest

from vit_jax.publish import public


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("folder:/home/ann/my cats/", "folder:my cats"),
        ("mix:0.7*folder:/a/cats+0.3*csv:/b/dogs.csv?label=breed", "mix:0.7*folder:cats+0.3*csv:dogs.csv?label=breed"),
        ("csv:/b/t.csv?root=/home/ann", "csv:t.csv"),
        ("tar:/a/b-{000..010}.tar", "tar:b-{000..010}.tar"),
        ("https://me:secret@host/a/b.npz?token=secret", "b.npz"),
        ("gs://bucket/a/b", "b"),
        ("~/x/y", "y"),
        ("runs/mine", "mine"),
        ("hf://timm/vit", "hf://timm/vit"),
        ("digits_pairs:500", "digits_pairs:500"),
        ("tfds:mnist:train", "tfds:mnist:train"),
        ("vit_b16.augreg_in21k", "vit_b16.augreg_in21k"),
    ],
)
def test_a_place_is_told_by_its_last_name(place, told):
    assert public.place(place) == told and public.place(told) == told


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("the vocabulary of '/home/ann/v.txt' is taken", "the vocabulary of 'v.txt' is taken"),
        ("see ~/a/b/c, and /", "see c, and ..."),
        ("val/accuracy and/or hf://timm/vit", "val/accuracy and/or hf://timm/vit"),
    ],
)
def test_a_sentence_keeps_the_last_names_of_paths(sentence, told):
    assert public.words(sentence) == told


def test_a_configuration_keeps_what_is_no_place():
    raw = {
        "data": {"path": "folder:/home/ann/pets", "text": {"tokenizer": "json:/home/ann/t.json?end=</s>"}, "canvas": 8},
        "objective": {"name": "distill", "teacher": {"init": "../big/run"}},
        "best": "val/accuracy", "optim": {"decay_rules": [[".*/bias", 0.0]]}, "init": None,
        "loggers": [{"name": "wandb", "entity": "team"}], "evaluators": [{"data": "csv:/x/y.csv"}],
    }  # fmt: skip
    assert public.config(raw) == {
        "data": {"path": "folder:pets", "text": {"tokenizer": "json:t.json"}, "canvas": 8},
        "objective": {"name": "distill", "teacher": {"init": "run"}},
        "best": "val/accuracy", "optim": {"decay_rules": [[".*/bias", 0.0]]}, "init": None,
        "evaluators": [{"data": "csv:y.csv"}],
    }  # fmt: skip
