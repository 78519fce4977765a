"""The names of ImageNet's classes, against the lists of others that are installed here."""

import importlib.util
import pathlib
import re

import pytest

from vit_jax.data import imagenet
from vit_jax.data.classes import mismatch


def test_a_thousand_names_in_their_order():
    found = imagenet.classes()
    assert len(found) == imagenet.CLASSES == len(set(found.values())) and list(found) == sorted(found)
    assert found["n01440764"] == "tench, Tinca tinca" and list(found.values())[281] == "tabby, tabby cat"
    assert [name for name in found.values() if name != name.strip() or not name] == []


def test_the_order_is_that_of_tensorflow_datasets():
    spec = importlib.util.find_spec("tensorflow_datasets")
    file = pathlib.Path(spec.submodule_search_locations[0]) / "datasets" / "imagenet2012" / "labels.txt"
    assert file.read_text().split() == list(imagenet.classes())


@pytest.mark.peer
def test_the_names_are_those_of_timm_and_torchvision(timm):
    from timm.data import ImageNetInfo

    theirs, ours = ImageNetInfo(), imagenet.classes()
    lemmas = {number: theirs.index_to_description(i) for i, number in enumerate(ours)}
    assert list(ours) == theirs.label_names()
    assert {k: (v, ours[k]) for k, v in lemmas.items() if v != ours[k]} == {
        "n02012849": ("crane", "crane, bird"), "n03126707": ("crane", "crane, machine"),
    }  # fmt: skip
    spec = importlib.util.find_spec("torchvision")
    text = (pathlib.Path(spec.submodule_search_locations[0]) / "models" / "_meta.py").read_text()
    names = re.findall(r'^    "(.+)",$', text.partition("_IMAGENET_CATEGORIES")[2].partition("]")[0], re.MULTILINE)
    assert len(names) == 1000
    first = [name.partition(",")[0].lower() for name in ours.values()]
    assert [b for a, b in zip(first, names, strict=True) if a != b.lower()] == ["crane bird", "maillot tank suit"]


@pytest.mark.parametrize(
    ("tag", "told"),
    [
        ("augreg_in21k_ft_in1k", True), ("augreg_in21k_ft_in1k_384", True), ("fb_in1k", True), ("in1k", True),
        ("openai_ft_in12k_in1k", True), ("augreg_in21k", False), ("in1k_ft_in22k", False), ("openai", False),
        ("begin1k", False), ("in1k2", False), ("", False),
    ],
)  # fmt: skip
def test_what_a_tag_tells(tag, told):
    assert imagenet.is_told(tag) == told


def test_numbers_of_wordnet_are_the_classes_that_they_name():
    numbers, names = list(imagenet.classes()), tuple(imagenet.classes().values())
    assert imagenet.named(numbers) == names and imagenet.named(numbers[5:7]) == names[5:7]
    assert imagenet.named(["n00000000"]) == ("n00000000",) and imagenet.named(()) == ()
    assert mismatch(names, numbers) is None and mismatch(numbers, names) is None
    assert "has the classes" in mismatch(names, sorted(names))
