import numpy as np
import pytest
from sklearn.datasets import load_digits

from vit_jax.data.sources import open_source
from vit_jax.types import UserError


def test_fixed_stratified_split():
    train, val = open_source("digits"), open_source("digits", "val")
    assert (len(train), len(val)) == (1437, 360) == (train.info.num_examples, val.info.num_examples)
    assert train.info.class_names == tuple("0123456789")
    names = {s[i]["name"] for s in (train, val) for i in range(len(s))}
    assert len(names) == 1797
    counts = np.bincount([val[i]["label"] for i in range(360)])
    assert counts.min() >= 34 and counts.max() <= 37
    assert np.array_equal(open_source("digits", "val", holdout=5, seed=3).indices, val.indices)


def test_pixels_and_labels_are_the_scans():
    data = load_digits()
    train = open_source("digits")
    for i in (0, 700, 1436):
        record, original = train[i], int(train.indices[i])
        assert record["image"].shape == (8, 8, 3) and record["image"].dtype == np.uint8
        assert np.abs(record["image"] / 255 - data.images[original][..., None] / 16).max() <= 0.5 / 255 + 1e-9
        assert record["label"] == data.target[original]


def test_takes_no_path():
    with pytest.raises(UserError, match="takes no path; write 'digits'"):
        open_source("digits:/x")
