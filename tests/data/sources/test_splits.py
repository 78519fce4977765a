"""What the parts of a data set are called."""

import pytest

from vit_jax.data.sources import splits


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("train", "train Train TRAINING"),
        ("val", "val Valid validation dev Dev"),
        ("test", "test Testing eval Evaluation"),
        (None, "trainer unlabeled vals cat"),
    ],
)
def test_spellings(part, names):
    assert {splits.of(name) for name in names.split()} == {part}


def test_files_and_choices():
    assert splits.of_file("Train-00000-of-00002.parquet") == "train" and splits.of_file("valid_0.tar") == "val"
    assert splits.of_file("trainer.tar") is None and splits.of_file("0000.tar") is None and splits.of_file("") is None
    assert splits.choose(["x", "Validation", "val"], "val") == "val"
    assert splits.choose(["x", "DEV"], "val") == "DEV" and splits.choose([], "train") is None
