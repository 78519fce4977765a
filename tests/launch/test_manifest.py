"""YAML that people read, and programs as it was meant."""

import yaml

from vit_jax.launch import manifest


def test_texts_stay_as_they_are():
    shared = ["a"]
    documents = [{"z": "one\ntwo\n", "a": "yes", "n": 1, "list": shared, "again": shared}, {"b": "x: #y", "e": " \ni"}]
    text = manifest.dump(*documents)
    assert list(yaml.safe_load_all(text)) == documents
    assert text.startswith("z: |\n  one\n  two\na: 'yes'\nn: 1\n") and "&" not in text
